"""The reference's inference written out from its description (spec.md f), for 2-frame windows.

Nothing of ours but the network, whose outputs golden vectors hold, and the tokenizer: schedule,
preconditioning, sampler, conditioning and the loop over frames are here once more, in plain steps.
"""

import math

import numpy as np
import torch


def schedule(n):
    return [(80 ** (1 / 7) + i / n * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n + 1)]


def denoised(net, x, sigma, *, clean, noise, action, fps):
    """D(x, sigma): (1, C, 2, h, w) float64 -> float64; the network is called in float32."""
    d = 0.5
    c_skip, c_in = d**2 / (sigma**2 + d**2), 1 / math.sqrt(sigma**2 + d**2)
    c_out = sigma * d / math.sqrt(sigma**2 + d**2)
    sigma_a = 0.001
    condition = (clean.double() + sigma_a * noise[:, :, 0].double()) / math.sqrt(sigma_a**2 + d**2)
    fed = c_in * x
    fed[:, :, 0] = condition
    mask = torch.zeros_like(fed[:, :1]).float()
    mask[:, :, 0] = 1
    out = net(
        fed.float(),
        torch.tensor([math.log(sigma) / 4]).float(),
        given=mask,
        fps=torch.tensor([fps]),
        action=action,
    )
    x0 = c_skip * x + c_out * out.double()
    x0[:, :, 0] = clean
    return x0


def sampled(net, n, noise, **condition):
    """RES "2ab" from 80 to 0.002 in n steps, and a last clean call."""
    levels, x = schedule(n), 80 * noise.double()
    previous = None
    for i in range(n):
        s, t = levels[i], levels[i + 1]
        x0 = denoised(net, x, s, noise=noise, **condition)
        if previous is None:
            x = (s - t) / s * x0 + t / s * x
        else:
            h = math.log(s / t)
            c2 = math.log(s / levels[i - 1]) / h
            p1 = (1 - math.exp(-h)) / h
            p2 = (p1 - 1) / (-h)
            x = math.exp(-h) * x + h * ((p1 - p2 / c2) * x0 + p2 / c2 * previous)
        previous = x0
    return denoised(net, x, levels[n], noise=noise, **condition)


@torch.no_grad()
def rolled_out(net, tokenizer, first, actions, *, n, seed, fps):
    """Of first (H, W, 3) uint8, actions (N, A) scaled: frames (N+1, ...), latents (N, C, h, w)."""
    frames, latents = [first], []
    for action in actions:
        clip = torch.from_numpy(np.stack([frames[-1], np.zeros_like(first)]))
        clean = tokenizer.encode(clip.permute(3, 0, 1, 2)[None].contiguous())[:, :, 0]
        shape = (1, clean.shape[1], 2, *clean.shape[2:])
        noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        one = torch.from_numpy(np.asarray(action, np.float32))[None, None]
        condition = {"clean": clean, "action": one, "fps": fps}
        latent = sampled(net, n, torch.from_numpy(noise), **condition).float()
        video = tokenizer.decode(latent)
        frames.append(video[0, :, 1].permute(1, 2, 0).numpy())
        latents.append(latent[0, :, 1].numpy())
    return np.stack(frames), np.stack(latents)

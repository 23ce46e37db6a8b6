"""What an evaluation measured, and how, in words: so that numbers can be put beside others'.

The published tables of world models on Bridge go back to IRASim (arXiv:2406.14540). Its own code
(github.com/bytedance/IRASim, evaluate/ and configs/evaluation/bridge) measures so:

- split test, camera 0, 256 x 320 pixels; short trajectories of 16 frames, one given, beginning at
  every 16th frame of an episode; whole episodes for long ones
- frames read back from H.264 videos; the given frame does not count
- short: PSNR and SSIM of grey pictures by scikit-image, SSIM with its defaults (7 x 7, uniform);
  long: PSNR of colours
- latent L2: mean square difference of Stable Diffusion VAE latents, the generated ones themselves
- FID: pytorch-fid over generated frames; FVD: StyleGAN-V's code, 15 frames at 256 x 256, mirrored
- a mean over a video's frames, then over videos; no intervals

`psnr_grey` and `ssim` here follow it but for the video files in between. Which conventions other
papers follow that print the same columns is theirs to say: we do not know.
"""

from collections.abc import Sequence

from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.ready import Ready
from cosmos_wds.rollout.wrong import WORDS

MEASURES = {
    "psnr": "PSNR in dB of all colours, uint8, data range 255; equal frames count as 58.9 dB",
    "psnr_grey": "PSNR in dB of grey pictures (ITU-R 601-2 luma), uint8, data range 255",
    "ssim": "SSIM of grey pictures, scikit-image, data range 255, uniform window of 7 x 7 pixels",
    "latent_l2": (
        "mean square difference of the model's tokenizer's latents (standard deviation 0.5): the "
        "generated ones themselves against the encoded recording; comparable between models of one "
        "tokenizer only"
    ),
    "lpips": "LPIPS by the network {lpips}, pictures in [-1, 1] at the model's size",
    "fvd": "FVD by the network {fvd}: a sample is a video without its given frame",
    "fid": "FID by the network {fid}: a sample is a generated frame",
}
BESIDE_IRASIM = (
    "psnr_grey and ssim are measured as by IRASim's code for its Bridge table of short "
    "trajectories (there: split test, 256x320, 15 generated frames from every 16th start, frames "
    "read back from H.264 videos); its latent L2 is of Stable Diffusion's VAE, another tokenizer"
)


def protocol(model: Ready, episodes: HeldOut, names: Sequence[str]) -> dict[str, str]:
    """What was measured, and how, in words, under short names."""
    recipe, settings, infer = model.recipe, model.recipe.eval, model.recipe.infer
    count, frames, height, width = episodes.frames.shape[:4]
    is_listed = f"the list {settings.list}" if settings.list else "spread evenly over the split"
    weights = {name: getattr(settings, name) for name in ("lpips", "fvd", "fid")}
    guidance = f", guidance {infer.guidance:g}" if infer.guidance else ""
    return {
        "episodes": f"{count} of split {settings.split}: {is_listed}; digest {episodes.digest}",
        "rollouts": (
            f"{frames - 1} actions at interval {recipe.window.interval} from the first frame on; "
            f"{recipe.call_window.frames - 1} frames a sampler call, {infer.steps} sampler steps"
            f"{guidance}, seed {settings.seed}; an episode's rollouts share their noise"
        ),
        "pictures": (
            f"{height}x{width} pixels, resized as for training (bilinear, antialiased), never "
            "written as video; the given frame counts nowhere"
        ),
        "means": "over an episode's frames, then over episodes; 95 % intervals over episodes",
        **{name: MEASURES[name].format(**weights) for name in names},
        **{f"{kind} actions": WORDS[kind] for kind in settings.wrong},
        "control score": (
            "(D_shuffled - D_true) / (D_shuffled - D_round_trip), D the mean squared error in "
            "pixels; bootstrap over episodes"
        ),
        "beside published tables": BESIDE_IRASIM,
    }

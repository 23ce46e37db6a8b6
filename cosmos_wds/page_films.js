"use strict";
// Keeps a figure's slider, its words, and what `show` does with a frame's number, in step with its
// video: `rate` frames a second, a line of `words` for each frame.

const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;

function keepInStep(figure, { rate, words }, show = () => {}) {
  const video = figure.querySelector("video");
  const slider = figure.querySelector(".tracks input");
  const cursor = figure.querySelector(".cursor");
  const last = Number(slider.max);

  function showFrame(frame) {
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `${frame} of ${last}: ${words[frame]}`);
    figure.querySelector(".now").textContent = words[frame];
    figure.querySelector(".at").textContent = `${frame} of ${last}`;
    cursor?.setAttribute("transform", `translate(${frame} 0)`);
    show(frame);
  }

  slider.addEventListener("input", () => {
    const frame = Number(slider.value);
    showFrame(frame);
    if (video) {
      video.pause();
      video.currentTime = (frame + 0.5) / rate;
    }
  });
  showFrame(0);
  if (!video) return;

  const step = () => showFrame(Math.min(last, Math.floor(video.currentTime * rate + 0.01)));
  const run = () => {
    step();
    if (!video.paused) requestAnimationFrame(run);
  };
  const fail = () => {
    figure.querySelector(".cannot").hidden = false;
  };
  video.addEventListener("play", run);
  video.addEventListener("seeked", step);
  video.addEventListener("error", fail);
  if (video.error) fail();
  else if (!isStill) video.play().catch(() => {}); // some browsers want a click first
}

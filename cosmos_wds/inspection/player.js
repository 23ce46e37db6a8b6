"use strict";
// Keeps what is drawn of an action in step with the frame that its episode's video shows.

const CENTRE = [46, 50];
const REACH = 36;

function follow(figure) {
  // A row of marks for each frame, -1 to 1: x and y of the arrow where there is one, then the bars.
  const { rate, marks, words } = JSON.parse(figure.dataset.episode);
  const video = figure.querySelector("video");
  const slider = figure.querySelector("input");
  const arrow = figure.querySelector(".arrow");
  const bars = figure.querySelectorAll(".bar");
  const cursor = figure.querySelector(".cursor");
  const last = Number(slider.max);

  function show(frame) {
    slider.value = frame;
    figure.querySelector(".at").textContent = `${frame} of ${last}`;
    figure.querySelector(".now").textContent = words[frame];
    cursor?.setAttribute("transform", `translate(${frame} 0)`);
    const values = [...marks[frame]];
    if (arrow) {
      const [x, y] = values.splice(0, 2);
      arrow.setAttribute("x2", CENTRE[0] + REACH * x);
      arrow.setAttribute("y2", CENTRE[1] - REACH * y);
      arrow.classList.toggle("short", Math.hypot(x, y) < 0.3); // shorter than its tip
    }
    bars.forEach((bar, i) => {
      bar.setAttribute("y", CENTRE[1] - REACH * Math.max(values[i], 0));
      bar.setAttribute("height", REACH * Math.abs(values[i]));
    });
  }

  slider.addEventListener("input", () => {
    const frame = Number(slider.value);
    show(frame);
    if (video) {
      video.pause();
      video.currentTime = (frame + 0.5) / rate;
    }
  });
  show(0);
  if (!video) return;

  const step = () => show(Math.min(last, Math.floor(video.currentTime * rate + 0.01)));
  const run = () => {
    step();
    if (!video.paused) requestAnimationFrame(run);
  };
  video.addEventListener("play", run);
  video.addEventListener("seeked", step);
  video.addEventListener("error", () => {
    figure.querySelector(".cannot").hidden = false;
  });
  if (video.error) figure.querySelector(".cannot").hidden = false;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    video.pause();
  } else {
    run();
  }
}

document.querySelectorAll("figure.episode").forEach(follow);

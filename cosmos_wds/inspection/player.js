// Draws each frame's action over the video of its episode.

const CENTRE = [46, 50];
const REACH = 36;

function follow(figure) {
  // A row of marks for each frame, -1 to 1: x and y of the arrow where there is one, then the bars.
  const episode = JSON.parse(figure.dataset.episode);
  const arrow = figure.querySelector(".arrow");
  const bars = figure.querySelectorAll(".bar");

  keepInStep(figure, episode, (frame) => {
    const values = [...episode.marks[frame]];
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
  });
}

document.querySelectorAll("figure.episode").forEach(follow);

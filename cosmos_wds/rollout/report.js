// Says each frame's numbers below its film, and stops all films at once.

document.querySelectorAll("figure.case").forEach((figure) => {
  keepInStep(figure, JSON.parse(figure.dataset.case));
});

const films = [...document.querySelectorAll("figure.case video")];
const button = document.querySelector("button.all");
const name = () => {
  const isPlaying = films.some((film) => !film.paused);
  button.textContent = isPlaying ? "Pause all videos" : "Play all videos";
  return isPlaying;
};
button.hidden = false;
button.addEventListener("click", () => {
  const isPlaying = name();
  films.forEach((film) => (isPlaying ? film.pause() : film.play().catch(() => {})));
});
films.forEach((film) => ["play", "pause"].forEach((what) => film.addEventListener(what, name)));
name();

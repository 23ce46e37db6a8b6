"use strict";
// Sends what is pressed and shows what comes back. One request at a time: the next one is made of
// what is pressed when the answer is there, so that nothing queues up.

const QUARTER = 0.25; // of the speed, with Shift
const DEAD = 0.15; // how far a stick rests from its centre
const CLOSING = 0.5; // of a gripper's whole way, in a step
const LEVELS = 20; // steps from end to end, of what keeps its place
const WINDOW = 3000; // milliseconds over which steps are counted

// Six directions that are driven: keys for less and for more, and the same on a gamepad.
const SLOTS = [
  { less: "KeyS", more: "KeyW", pad: "left stick up, down" },
  { less: "KeyD", more: "KeyA", pad: "left stick left, right" },
  { less: "KeyF", more: "KeyR", pad: "right stick up, down" },
  { less: "KeyU", more: "KeyO", pad: "cross left, right" },
  { less: "KeyK", more: "KeyI", pad: "cross up, down" },
  { less: "KeyL", more: "KeyJ", pad: "right stick left, right" },
];
const POSE = ["x", "y", "z", "roll", "pitch", "yaw"];
const ALIASES = { ArrowUp: "KeyW", ArrowDown: "KeyS", ArrowLeft: "KeyA", ArrowRight: "KeyD" };
const DRIVEN = new Set([...SLOTS.flatMap((slot) => [slot.less, slot.more]), "Space"]);
const TURNS = ["+x", "+y", "\u2212x", "\u2212y"]; // what up means, a quarter turn each

const element = (id) => document.getElementById(id);
const stage = element("stage");
const held = new Set(); // keys, and buttons of the page, that are down
const tapped = new Set(); // those that went down since the last request
let letters = new Map(); // what is printed on the keys
let world = null; // what the server said first
let socket = null;
let busy = true;
let timer = 0;
let asked = null; // what is being waited for
let wanted = null; // what is to be asked as soon as the answer is there
let current = 0; // the start that is driven
let steps = 0;
let sentAt = 0;
let answers = []; // when the last ones came
let axes = []; // the numbers of an action, and what shows them

// What is pressed

function letter(code) {
  return (letters.get(code) || code.replace("Key", "")).toUpperCase();
}

function isOn(code) {
  return held.has(code) || tapped.has(code);
}

function pads() {
  const all = navigator.getGamepads ? [...navigator.getGamepads()] : [];
  return all.filter((pad) => pad && pad.connected && pad.mapping === "standard");
}

function padded(slot) {
  const [pad] = pads();
  if (!pad) return 0;
  const stick = (number) => (Math.abs(pad.axes[number]) > DEAD ? -pad.axes[number] : 0);
  const cross = (more, less) => pad.buttons[more].pressed - pad.buttons[less].pressed;
  const read = [
    () => stick(1), () => stick(0), () => stick(3), () => cross(15, 14), () => cross(12, 13), () => stick(2),
  ];
  return read[slot]();
}

function slotValue(slot) {
  const { less, more } = SLOTS[slot];
  return isOn(more) - isOn(less) + padded(slot);
}

// How far a slot drives a dimension: 0, 1 or -1; x and y are turned as the user sees them.
function share(axis, slot) {
  if (axis.turned === undefined) return axis.slot === slot ? 1 : 0;
  if (slot > 1) return 0;
  const turn = Number(element("turn").value);
  const quarter = [[1, 0, -1, 0], [0, -1, 0, 1]]; // of x: along up, along left
  return axis.turned === 0 ? quarter[slot][turn] : quarter[1 - slot][turn] * (slot === 0 ? -1 : 1);
}

function wish(axis, number) {
  let value = isOn(`more ${number}`) - isOn(`less ${number}`);
  SLOTS.forEach((_, slot) => {
    const along = share(axis, slot);
    if (along) value += along * slotValue(slot);
  });
  return Math.max(-1, Math.min(1, value));
}

function keysOf(axis) {
  const slot = SLOTS.findIndex((_, number) => share(axis, number));
  if (slot < 0) return null;
  const { less, more, pad } = SLOTS[slot];
  return share(axis, slot) > 0 ? { less, more, pad } : { less: more, more: less, pad };
}

// What is sent

function next() {
  const speed = (Number(element("speed").value) / 100) * (isOn("ShiftLeft") || isOn("ShiftRight") ? QUARTER : 1);
  let moves = false;
  const action = axes.map((axis, number) => {
    const range = axis.high - axis.low;
    if (axis.isGripper) {
      const most = CLOSING * range;
      const way = Math.max(-most, Math.min(most, axis.goal - axis.level));
      moves ||= way !== 0;
      return axis.level + way;
    }
    const value = wish(axis, number);
    moves ||= value !== 0;
    if (!axis.held) return value * speed * (value > 0 ? axis.high : -axis.low);
    return Math.max(axis.low, Math.min(axis.high, axis.level + (value * speed * range) / LEVELS));
  });
  return moves ? action : null;
}

function pump() {
  if (busy || timer || !socket || socket.readyState !== WebSocket.OPEN) return;
  const action = next();
  if (!action) {
    show(axes.map((axis) => (axis.held ? axis.level : 0)));
    return;
  }
  const pace = element("pace").value === "real" ? 1000 / world.fps : 0;
  const wait = sentAt + pace - performance.now();
  if (wait > 0) {
    timer = setTimeout(() => {
      timer = 0;
      pump();
    }, wait);
    return;
  }
  tapped.clear();
  sentAt = performance.now();
  ask({ do: "step", action });
  show(action);
}

function ask(request) {
  busy = true;
  asked = request;
  socket.send(JSON.stringify(request));
}

function toggleGripper() {
  const gripper = axes.find((axis) => axis.isGripper);
  if (!gripper) return;
  gripper.goal = gripper.goal > (gripper.low + gripper.high) / 2 ? gripper.low : gripper.high;
  pump();
}

function begin(number) {
  if (!element("seed").reportValidity()) return;
  soon(() => {
    current = number;
    tapped.clear();
    ask({ do: "begin", start: number, seed: Number(element("seed").value) });
  });
}

function save() {
  soon(() => ask({ do: "save" }));
}

function soon(action) {
  if (busy) wanted = action;
  else if (socket.readyState === WebSocket.OPEN) action();
}

// What comes back

async function receive(data) {
  const length = new DataView(data).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let at = 4 + length;
  const files = head.sizes.map((size) => new Uint8Array(data, (at += size) - size, size));
  await { hello, begun, frame, saved, error }[head.is](head, files);
  if (head.is !== "hello") {
    busy = false;
    asked = null;
    const action = wanted || pump;
    wanted = null;
    action();
  }
}

async function hello(head, files) {
  world = head;
  stage.width = head.width;
  stage.height = head.height;
  element("model").textContent = `${head.model}, ${head.height}\u00d7${head.width} pixels, ${head.fps} frames a second`;
  build();
  await Promise.all(head.starts.map((start, number) => offer(start, number, files[number])));
  busy = false;
  begin(0);
}

async function begun(head, files) {
  const start = world.starts[current];
  axes.forEach((axis) => {
    const middle = (axis.low + axis.high) / 2;
    axis.level = axis.isGripper ? (start.gripper ?? axis.high) : middle;
    axis.goal = axis.level;
  });
  answers = [];
  document.querySelectorAll("#gallery button").forEach((button, number) => {
    button.setAttribute("aria-pressed", String(number === current));
  });
  element("files").replaceChildren();
  await draw(head.step, files[0]);
  show(axes.map((axis) => (axis.held ? axis.level : 0)));
  say(start.text ? `${start.name}: \u201c${start.text}\u201d` : start.name);
}

async function frame(head, files) {
  axes.forEach((axis, number) => {
    axis.level = asked.action[number];
  });
  answers.push(performance.now());
  await draw(head.step, files[0]);
}

function saved(head, files) {
  const name = `play-${String(head.step).padStart(4, "0")}`;
  const kinds = [["mp4", "video/mp4"], ["json", "application/json"]];
  const links = kinds.map(([ending, type], number) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([files[number]], { type }));
    link.download = link.textContent = `${name}.${ending}`;
    return link;
  });
  document.querySelectorAll("#files a").forEach((link) => URL.revokeObjectURL(link.href));
  element("files").replaceChildren(...links);
  links.forEach((link) => link.click());
  say(`saved ${head.step} steps`);
}

function error(head) {
  held.clear();
  tapped.clear();
  axes.forEach((axis) => {
    axis.goal = axis.level;
  });
  say(head.text, true);
}

async function draw(step, bytes) {
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  stage.getContext("2d").drawImage(image, 0, 0);
  image.close();
  steps = step;
  count();
}

function count() {
  const now = performance.now();
  answers = answers.filter((at) => now - at < WINDOW);
  const span = now - answers[0];
  const rate = answers.length > 1 ? `${((1000 * (answers.length - 1)) / (answers.at(-1) - answers[0])).toFixed(1)} steps/s` : "";
  element("count").textContent = `${steps} of ${world.most_steps} steps recorded`;
  element("rate").textContent = span > WINDOW ? "" : rate;
}

function say(text, isWrong = false) {
  element("said").textContent = text;
  element("said").classList.toggle("wrong", isWrong);
}

// What is drawn

function build() {
  const hasPose = ["x", "y"].every((name) => world.names.includes(name));
  let free = 0;
  axes = world.names.map((name, number) => {
    const isGripper = name === "gripper";
    const axis = { name, unit: world.units[number], low: world.low[number], high: world.high[number], isGripper };
    axis.held = world.held[number];
    axis.level = axis.goal = 0;
    if (hasPose) axis.slot = POSE.indexOf(name);
    else axis.slot = isGripper ? -1 : free++;
    if (hasPose && (name === "x" || name === "y")) axis.turned = name === "x" ? 0 : 1;
    return axis;
  });
  element("turn").replaceChildren(...TURNS.map((name, number) => new Option(name, number)));
  element("turn").value = recall("turn") || "0";
  element("turn").parentElement.hidden = !hasPose;
  element("dial").toggleAttribute("hidden", !hasPose);
  element("hand").toggleAttribute("hidden", !axes.some((axis) => axis.isGripper));
  element("axes").replaceChildren(...axes.map(row));
  label();
}

function row(axis, number) {
  const make = (kind, name, ...children) => {
    const made = document.createElement(kind);
    made.className = name;
    made.append(...children);
    return made;
  };
  axis.fill = make("span", "fill");
  axis.value = make("output", "value");
  axis.value.setAttribute("aria-live", "off");
  const parts = axis.isGripper
    ? [make("button", "hold wide", "Space")]
    : [make("button", "hold"), make("button", "hold")];
  if (axis.isGripper) {
    parts[0].setAttribute("aria-label", "open or close the gripper");
    parts[0].addEventListener("click", toggleGripper);
  } else {
    ["less", "more"].forEach((way, place) => holdable(parts[place], `${way} ${number}`));
    [axis.less, axis.more] = parts;
  }
  parts.forEach((button) => {
    button.type = "button";
  });
  parts.splice(1, 0, make("span", "track", axis.fill));
  return make("div", "axis", make("span", "name", axis.name), ...parts, axis.value);
}

// A button that counts as pressed while it is held down; Enter on it is one tap.
function holdable(button, code) {
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    button.setPointerCapture(event.pointerId);
    press(code);
  });
  for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(kind, () => held.delete(code));
  }
  button.addEventListener("click", (event) => {
    if (event.detail === 0) tap(code);
  });
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}

// What keys do, where it depends on how the user sees the world and on the keyboard.
function label() {
  const rows = axes.map((axis) => {
    const keys = axis.isGripper ? null : keysOf(axis);
    if (axis.less) {
      [["less", "\u2212"], ["more", "+"]].forEach(([way, sign]) => {
        axis[way].textContent = keys ? `${letter(keys[way])} ${sign}` : sign;
        axis[way].setAttribute("aria-label", `${axis.name} ${way}`);
      });
    }
    if (axis.isGripper) return [axis.name, "Space", "", "A"];
    return [axis.name, keys ? letter(keys.less) : "", keys ? letter(keys.more) : "", keys ? keys.pad : ""];
  });
  const four = ["KeyW", "KeyA", "KeyS", "KeyD"].map(letter).join(" ");
  rows.push(["begin anew", "Backspace", "", "Start"], ["save", letter("KeyV"), "", ""]);
  rows.push([`as ${four}`, "arrow keys", "", ""]);
  element("keys").replaceChildren(
    ...rows.map((words) => {
      const line = document.createElement("tr");
      line.append(
        ...words.map((word, place) => {
          const cell = document.createElement(place ? "td" : "th");
          if (!place) cell.scope = "row";
          cell.textContent = word;
          return cell;
        }),
      );
      return line;
    }),
  );
  const turn = Number(element("turn").value);
  element("turn-name").textContent = `${letter("KeyW")} is`;
  element("ahead").textContent = TURNS[turn];
  element("aside").textContent = TURNS[(turn + 1) % 4];
  element("speed-said").textContent = `${element("speed").value} %`;
  document.body.classList.toggle("pixels", element("pixels").checked);
}

function show(action) {
  action.forEach((value, number) => {
    const axis = axes[number];
    const zero = axis.held ? axis.low : 0;
    const span = axis.held ? axis.high - axis.low : 2 * Math.max(axis.high, -axis.low);
    const size = (100 * Math.abs(value - zero)) / span;
    axis.fill.style.width = `${size}%`;
    axis.fill.style.left = axis.held ? "0" : `${50 - (value < 0 ? size : 0)}%`;
    const digits = span >= 20 ? 1 : span >= 2 ? 2 : 3;
    axis.value.textContent = `${axis.held ? "" : value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(digits)} ${axis.unit}`;
    if (axis.isGripper) hand((value - axis.low) / span);
  });
  const [x, y] = ["x", "y"].map((name) => axes.findIndex((axis) => axis.turned === (name === "x" ? 0 : 1)));
  if (x >= 0 && y >= 0) arrow(along(0, x, y, action), along(1, x, y, action));
}

// How far an action goes up or to the left, -1 to 1 of the limits.
function along(slot, x, y, action) {
  return [x, y].reduce((sum, at) => sum + (share(axes[at], slot) * action[at]) / axes[at].high, 0);
}

function arrow(up, left) {
  const [dx, dy] = [-42 * left, -42 * up];
  const size = Math.hypot(dx, dy);
  if (size < 1) {
    element("arrow").setAttribute("d", "M-3,0 a3,3 0 1 0 6,0 a3,3 0 1 0 -6,0");
    return;
  }
  const [ux, uy] = [dx / size, dy / size];
  const tip = Math.min(10, size);
  const [bx, by] = [dx - tip * ux, dy - tip * uy];
  const corner = (side) => `${bx - side * 0.6 * tip * uy},${by + side * 0.6 * tip * ux}`;
  element("arrow").setAttribute(
    "d",
    `M${-2 * uy},${2 * ux} L${bx - 2 * uy},${by + 2 * ux} L${corner(1)} L${dx},${dy} L${corner(-1)} L${bx + 2 * uy},${by - 2 * ux} L${2 * uy},${-2 * ux} Z`,
  );
}

function hand(share) {
  const gap = 4 + 24 * Math.max(0, Math.min(1, share));
  element("left").setAttribute("d", `M${60 - gap},34 v44 h-9 v-44 Z`);
  element("right").setAttribute("d", `M${60 + gap},34 v44 h9 v-44 Z`);
  element("open").textContent = share > 0.95 ? "open" : share < 0.05 ? "closed" : `${Math.round(100 * share)} % open`;
}

async function offer(start, number, bytes) {
  const button = document.createElement("button");
  const picture = document.createElement("canvas");
  const image = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  [picture.width, picture.height] = [image.width, image.height];
  picture.getContext("2d").drawImage(image, 0, 0);
  image.close();
  button.type = "button";
  button.title = start.text || start.name;
  button.setAttribute("aria-label", start.text ? `${start.name}: ${start.text}` : start.name);
  button.append(picture);
  button.addEventListener("click", () => {
    begin(number);
    stage.focus({ preventScroll: true });
    stage.scrollIntoView({ block: "nearest" });
  });
  while (element("gallery").children.length <= number) {
    element("gallery").append(document.createElement("div"));
  }
  element("gallery").children[number].replaceChildren(button);
}

function remember(key, value) {
  try {
    localStorage.setItem(`${key} ${world.model}`, value);
  } catch {
    // a browser that keeps nothing
  }
}

function recall(key) {
  try {
    return localStorage.getItem(`${key} ${world.model}`);
  } catch {
    return null;
  }
}

// Keys, sticks, and the rest of the page

function press(code) {
  held.add(code);
  tap(code);
}

function tap(code) {
  tapped.add(code);
  pump();
}

function takes(target, code) {
  if (target.closest("input:not([type=checkbox]), select, textarea")) return false;
  return code !== "Space" || !target.closest("button, a, input, summary");
}

addEventListener("keydown", (event) => {
  const code = ALIASES[event.code] || event.code;
  if (code.startsWith("Shift")) held.add(code);
  if (!world || event.ctrlKey || event.metaKey || event.altKey || !takes(event.target, code)) return;
  const isDriven = DRIVEN.has(code);
  if (isDriven || code === "Backspace" || code === "KeyV") event.preventDefault();
  if (event.repeat) return;
  if (code === "Space") toggleGripper();
  else if (code === "Backspace") begin(current);
  else if (code === "KeyV") save();
  else if (isDriven) press(code);
});
addEventListener("keyup", (event) => {
  held.delete(ALIASES[event.code] || event.code);
});
addEventListener("blur", () => held.clear());
document.addEventListener("visibilitychange", () => held.clear());

let pressedBefore = [];
function poll() {
  const [pad] = pads();
  if (!pad) return;
  const pressed = pad.buttons.map((button) => button.pressed);
  const isNew = (number) => pressed[number] && !pressedBefore[number];
  if (world && isNew(0)) toggleGripper();
  if (world && isNew(9)) begin(current);
  pressedBefore = pressed;
  if (world) pump();
  requestAnimationFrame(poll);
}
addEventListener("gamepadconnected", () => requestAnimationFrame(poll));

element("again").addEventListener("click", () => begin(current));
element("save").addEventListener("click", save);
for (const id of ["again", "save"]) {
  element(id).addEventListener("pointerup", () => setTimeout(() => stage.focus({ preventScroll: true })));
}
for (const id of ["speed", "turn", "pixels"]) {
  element(id).addEventListener("input", () => {
    label();
    if (id === "turn") remember("turn", element("turn").value);
  });
}
navigator.keyboard?.getLayoutMap?.().then(
  (map) => {
    letters = map;
    if (world) label();
  },
  () => {},
);

function connect() {
  socket = new WebSocket(`ws://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  let done = Promise.resolve();
  socket.addEventListener("message", (event) => {
    done = done.then(() => receive(event.data));
  });
  socket.addEventListener("close", (event) => {
    busy = true;
    document.body.classList.add("ended");
    const why = { 1001: "The server has ended.", 1013: "" }[event.code] ?? "The connection is gone: the server says why.";
    if (why) done.then(() => say(`${why} Load this page again once it is there.`, true));
  });
}

connect();

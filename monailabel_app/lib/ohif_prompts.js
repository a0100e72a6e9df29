// Points, boxes and scribbles: each is answered as it is set, and can be taken back.

const COLOURS = { foreground: 'rgb(0, 255, 0)', background: 'rgb(255, 60, 60)', box: 'rgb(255, 255, 0)' };

let tab; // the panel's own component of Point Prompts
let organ; // that was chosen last; prompts are negative while `background` is chosen after it
let prompts = []; // what is set: organ, kind (a colour's name), annotation, voxels, axis across the slice, slice
let steps = []; // what was drawn: organ, prompt (none where Run asked again), difference
let takenBack = false; // something was, which the server does not know
const finished = new Set(); // organs that were submitted, or whose prompts were cleared

const modelOf = name => tab.props.info.data.models[name];
const shownSeries = () => tab.props.getActiveViewportInfo().displaySet.SeriesInstanceUID;
const optionsOf = name => tab.props.onOptionsConfig()?.infer?.[name] ?? {};

// Numbers of the organs that are not drawn over: those that were prompted or submitted.
const keptBut = organ =>
  new Set([...finished, ...steps.map(step => step.organ)].filter(name => name !== organ).map(numberOf));

// What is asked for: all prompts of an organ, by a 2-D model those on the slice of the last one.
function request(organ, { dimension, config }) {
  const all = prompts.filter(prompt => prompt.organ === organ);
  if (!all.length) throw new Error(organ ? `No prompt is set for ${organ}` : 'Choose an organ in the list first');
  const { axis, slice } = all.at(-1);
  const mine = dimension === 2 ? all.filter(prompt => prompt.axis === axis && prompt.slice === slice) : all;
  const boxes = mine.filter(prompt => prompt.kind === 'box');
  const points = kind => mine.filter(prompt => prompt.kind === kind && !prompt.line).flatMap(prompt => prompt.voxels);
  const lines = mine.filter(prompt => prompt.line);
  const fields = { label: organ, foreground: points('foreground'), background: points('background') };
  if (lines.length)
    fields.scribbles = lines.map(({ kind, voxels }) => ({ inside: kind === 'foreground', points: voxels }));
  if ('plane' in config) fields.plane = planeAcross((boxes[0] ?? mine[0]).axis);
  // two boxes drawn across each other are one in 3-D; those drawn alike are each on its own slice
  const across = [0, 1, 2].map(axis => boxes.findLast(box => box.axis === axis)).filter(Boolean);
  const groups = across.length > 1 ? [across] : boxes.map(box => [box]);
  fields.roi = groups.flatMap(group => {
    const corners = group.flatMap(box => box.voxels);
    return [0, 1, 2].flatMap(n => [Math.min, Math.max].map(end => end(...corners.map(corner => corner[n]))));
  });
  return dimension === 2 ? { fields, axis, slice } : { fields };
}

// Draw the server's mask of an organ; `prompt` is what was set for it, none where Run asks again.
async function ask(organ, prompt) {
  const name = tab.getSelectedModel();
  const { fields, axis, slice } = request(organ, modelOf(name));
  const kept = optionsOf(name).replace ? new Set() : keptBut(organ);
  if (prompt?.kind === 'foreground') refuseInside(kept, prompt);
  const waiting = setTimeout(() => say(`${name} is computing`, 'info'), 1000);
  const answer = await tab.props.client().infer(name, shownSeries(), { ...optionsOf(name), ...fields });
  clearTimeout(waiting);
  if (answer.status !== 200) return false;
  const changes = difference(voxelsOf(answer.data), numberOf(organ), kept, axis, slice);
  if (prompt || changes.places.length) steps.push({ organ, prompt, ...changes });
  apply(changes);
  return true;
}

function refuseInside(kept, { voxels }) {
  const [values, [width, height]] = [drawn(), labelVolume().dimensions];
  const inside = voxels.map(([i, j, k]) => values[i + width * (j + height * k)]).find(number => kept.has(number));
  if (inside) throw new Error(`${nameOf(inside)} is finished there: to draw over it, set replace in the options`);
}

// --- setting and taking back ----------------------------------------------------------------------------------------

// Voxels under what was drawn, first and last of a box; the axis across the view, and the slice.
function place(prompt) {
  const { data, metadata } = prompt.annotation;
  const world = prompt.line ? data.contour.polyline : data.handles.points;
  const exact = world.map(point => [...labelVolume().imageData.worldToIndex(point)]);
  const axis = axisAlong(metadata.viewPlaneNormal);
  if (prompt.kind === 'box') {
    // a view may be tilted against the slices: the box is on the one through its middle
    const middle = exact.reduce((sum, point) => sum + point[axis] / exact.length, 0);
    exact.forEach(point => (point[axis] = middle));
  }
  const voxels = exact.map(point => point.map(Math.round));
  const end = end => [0, 1, 2].map(n => end(...voxels.map(voxel => voxel[n])));
  const once = voxels.filter((voxel, n) => `${voxel}` !== `${voxels[n - 1]}`);
  prompt.voxels = prompt.kind === 'box' ? [end(Math.min), end(Math.max)] : once;
  [prompt.axis, prompt.slice] = [axis, voxels.at(-1)[axis]];
}

// What is not answered is taken back: what is set is what is drawn.
async function add(prompt) {
  prompts.push(prompt);
  let answered = false;
  try {
    place(prompt);
    answered = await ask(prompt.organ, prompt);
  } finally {
    if (!answered) remove(prompt);
    show();
  }
}

function remove(prompt) {
  prompts = prompts.filter(other => other !== prompt);
  window.cornerstoneTools.annotation.state.removeAnnotation(prompt.annotation.annotationUID);
}

function undo() {
  const step = steps.pop();
  if (!step) return say('Nothing to take back', 'warning');
  takeBack(step);
  takenBack = true;
  if (step.prompt) remove(step.prompt);
  if (step.organ !== organ) tab.onChangeLabel(step.organ);
  show();
}

// The masks stay, and are finished.
function finish(which = () => true) {
  steps.filter(which).forEach(({ organ, prompt }) => {
    finished.add(organ);
    if (prompt?.axis === 2) corrected.add(prompt.slice);
  });
  steps = steps.filter(step => !which(step));
  prompts.filter(which).forEach(remove);
  show();
}

// The prompts of the organ that is chosen. They are locked, so that a click beside one is a new one.
function show() {
  const { state, locking, config } = window.cornerstoneTools.annotation;
  for (const { organ: of, kind, annotation } of prompts) {
    state.removeAnnotation(annotation.annotationUID);
    if (of !== organ) continue;
    annotation.highlighted = false;
    state.addAnnotation(annotation, annotation.metadata.FrameOfReferenceUID);
    locking.setAnnotationLocked(annotation.annotationUID, true);
    const color = COLOURS[kind];
    const styles = { color, colorHighlighted: color, colorSelected: color, colorLocked: color };
    config.style.setAnnotationStyles(annotation.annotationUID, styles);
  }
  window.services.cornerstoneViewportService.getRenderingEngine()?.render();
}

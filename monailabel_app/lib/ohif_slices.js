// Labels of some slices: the server names those to label, the view goes there, and a label is submitted as one of these
// slices only.

let asked = []; // slices to label, counted from 0 along the volume's third axis; none is the whole volume
let shown = -1; // which of them is looked at
const corrected = new Set(); // slices whose prompts were cleared, and their masks kept

function forgetSlices() {
  [asked, shown] = [[], -1];
}

// Those that were asked for, and those that were prompted beside; undefined is the whole volume.
function labelledSlices() {
  if (!asked.length) return undefined;
  const prompted = prompts.filter(prompt => prompt.axis === 2).map(prompt => prompt.slice);
  return [...new Set([...asked, ...corrected, ...prompted])].sort((a, b) => a - b);
}

function lookAt(slice) {
  const { dimensions, imageData } = labelVolume();
  const middle = imageData.indexToWorld([dimensions[0] / 2, dimensions[1] / 2, slice]);
  for (const { viewport } of window.cornerstone.getEnabledElements())
    if (axisAlong(viewport.getCamera().viewPlaneNormal) === 2) viewport.jumpToWorld(middle);
}

async function askForSlices(slices) {
  const url = new URL('activelearning/first', document.getElementById('monailabelServerURL').value);
  const body = JSON.stringify({ image: shownSeries(), slices });
  const answer = await fetch(url, { method: 'POST', body, headers: { 'Content-Type': 'application/json' } });
  if (!answer.ok) return failed(`No slices could be chosen: ${await detailOf(answer)}`);
  const found = await answer.json();
  if (!found.slices?.length) return say(found.slices_why ?? 'This image has no slices: label all of it', 'warning');
  asked = found.slices;
}

async function nextSlice() {
  const count = Number(document.getElementById('medsagaSlices').value);
  if (!count) return say('Label the whole volume: the number of slices is 0', 'info');
  if (!asked.length) await askForSlices(count);
  if (!asked.length) return;
  shown = (shown + 1) % asked.length;
  alignViews();
  lookAt(asked[shown]);
  say(`Slice ${shown + 1} of ${asked.length} to label: label all organs on it`, 'info');
}

function addSlices(after) {
  const count = document.createElement('input');
  const title = 'How many slices of this volume to label; 0 is the whole volume';
  Object.assign(count, { id: 'medsagaSlices', type: 'number', min: 0, value: 3, title, onchange: forgetSlices });
  count.style.cssText = 'width: 3.5em; color: black; font-size: 13px';
  after.after(addButton('medsagaNextSlice', 'Next Slice', 'Go to the next slice to label', nextSlice), count);
}

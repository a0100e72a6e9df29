// OHIF's label volume, in which the panel draws: segments by number, and what may be drawn over.

const labelVolume = () => window.services.segmentationService.getLabelmapVolume('1');
const segments = () => {
  const { segments } = window.services.segmentationService.getSegmentation('1');
  return Object.entries(segments).map(([number, { label }]) => [Number(number), label]);
};
const numberOf = organ => {
  const [number] = segments().find(([, label]) => label === organ) ?? [];
  if (!number) throw new Error(`OHIF has no segment ${organ}: reload the page`);
  return number;
};
const nameOf = number => segments().find(([n]) => n === number)[1];
const drawn = () => new Uint8Array(labelVolume()?.voxelManager.getCompleteScalarDataArray() ?? []);

function draw(values) {
  labelVolume().voxelManager.setCompleteScalarDataArray(values);
  const { eventTarget, triggerEvent } = window.cornerstone;
  triggerEvent(eventTarget, window.cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED, { segmentationId: '1' });
}

// The volume's axes in the patient. Slices across one are called by the patient's nearest.
const PLANES = ['sagittal', 'coronal', 'axial'];
const axes = () => [0, 3, 6].map(n => [...labelVolume().direction.slice(n, n + 3)]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const largest = numbers => numbers.map(Math.abs).reduce((best, n, i, all) => (n > all[best] ? i : best), 0);
const planeAcross = axis => PLANES[largest(axes()[axis])];
const axisAlong = vector => largest(axes().map(axis => dot(axis, vector)));
const nearest = (vector, n) => axes()[n].map(v => (dot(axes()[n], vector) < 0 ? -v : v)); // of both ways along axis n

// Where a mask differs from what is drawn of an object, with what was there: on a slice across an axis, or in the whole
// volume. Voxels of the segments in `kept` are left.
function difference(mask, number, kept, axis, slice) {
  const values = drawn();
  const { dimensions } = labelVolume();
  const length = axis === undefined ? values.length : dimensions.slice(0, axis).reduce((a, b) => a * b, 1);
  const stride = axis === undefined ? values.length : length * dimensions[axis];
  const places = [];
  for (let start = axis === undefined ? 0 : slice * length; start < values.length; start += stride)
    for (let n = start; n < start + length; n++)
      if (mask[n] ? values[n] !== number && !kept.has(values[n]) : values[n] === number) places.push(n);
  return { number, places: Uint32Array.from(places), before: Uint8Array.from(places, n => values[n]) };
}

function apply({ number, places, before }) {
  const values = drawn();
  places.forEach((n, i) => (values[n] = before[i] === number ? 0 : number));
  draw(values);
}

// Exactly what was there, but for voxels that have been drawn over since.
function takeBack({ number, places, before }) {
  const values = drawn();
  places.forEach((n, i) => {
    if (values[n] === (before[i] === number ? 0 : number)) values[n] = before[i];
  });
  draw(values);
}

// The server's NRRD: lines of text, an empty one, bytes.
function voxelsOf(answer) {
  const bytes = new Uint8Array(answer);
  return bytes.subarray(bytes.findIndex((byte, n) => byte === 10 && bytes[n + 1] === 10) + 2);
}

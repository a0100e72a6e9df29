// A button that submits the label as it is drawn: OHIF's panel can train on labels, but has nothing to save one with.

async function submit() {
  const values = drawn();
  if (!values.some(value => value)) return say('Nothing is segmented yet', 'warning');
  // each segment with its value in the mask
  const names = segments().map(([segmentIndex, name]) => ({ name, segmentIndex }));
  const form = new FormData();
  const slices = labelledSlices();
  form.append('params', JSON.stringify({ label_info: names, labelled_slices: slices })); // undefined is left out
  form.append('label', new Blob([values]), 'label.bin');
  const url = new URL('datastore/label', document.getElementById('monailabelServerURL').value);
  url.searchParams.append('image', shownSeries());
  const answer = await fetch(url, { method: 'PUT', body: form });
  if (!answer.ok) return failed(`Label not submitted: ${await detailOf(answer)}`);
  new Set(values).forEach(value => value && finished.add(nameOf(value)));
  say(slices ? `Label of ${slices.length} slices submitted` : 'Label submitted', 'success');
}

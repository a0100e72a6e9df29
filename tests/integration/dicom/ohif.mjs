// What an annotator does in OHIF, in a real browser: node ohif.mjs TASK.json
//
// TASK.json: study (UID), folder (of the screenshots), points in mm, L P S, all on one slice: inside (beside the label to
// prompt for), outside (background), box (opposite corners around the label), middle (of it), line (through it); label
// (its name), modules (folder with puppeteer-core), chromium, server, parts (of what an annotator does, by the names
// below).
// Prints one JSON object of what was seen.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const task = JSON.parse(fs.readFileSync(process.argv[2]));
const puppeteer = createRequire(path.join(task.modules, 'x.js'))('puppeteer-core');
const seen = { errors: [], console: [], answers: {} };
let shots = 0;

const browser = await puppeteer.launch({
  executablePath: task.chromium,
  headless: true,
  // WebGL in software: there is no GPU where the tests run
  args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader',
    '--ignore-gpu-blocklist', '--disable-dev-shm-usage'],
  defaultViewport: { width: 1280, height: 760 },
  protocolTimeout: 120000,
});
const page = await browser.newPage();
page.on('dialog', dialog => dialog.accept());
page.on('pageerror', error => seen.errors.push(String(error)));
page.on('console', message => message.type() === 'error' && seen.console.push(message.text()));

const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
const shoot = name => page.screenshot({ path: path.join(task.folder, `ohif_${++shots}_${name}.png`) });
const until = (test, ...args) => page.waitForFunction(test, { timeout: 90000, polling: 200 }, ...args);

// An element of the panel by its text, within a tab of the panel where one is named.
async function click(text, tab) {
  await page.evaluate((text, tab) => {
    const within = tab
      ? [...document.querySelectorAll('.tab')].find(t => t.querySelector('.tab-label').textContent === tab)
      : document;
    const found = [...within.querySelectorAll('button, label.tab-label, .clickable-row td, a')].find(e => e.textContent.trim() === text);
    if (!found) throw new Error(`nothing is called ${text}`);
    found.click();
  }, text, tab);
}

// Does something, waits for the server's answer to it and notes its status under a name.
async function answered(name, method, part, action) {
  const [response] = await Promise.all([
    page.waitForResponse(r => r.request().method() === method && r.url().includes(part), { timeout: 90000 }),
    action(),
  ]);
  seen.answers[name] = response.status();
  const place = response.headers()['medsaga-least-sure-slice'];
  if (place) seen.leastSure = Number(place);
}

async function open(study) {
  await page.goto(`${task.server}/ohif/monai-label?StudyInstanceUIDs=${study}`, { waitUntil: 'domcontentloaded' });
  await connect();
}

async function connect() {
  await page.waitForSelector('.monaiLabelPanel button.actionButton', { timeout: 90000 });
  await until(() => window.cornerstone?.getEnabledElements().length >= 3 && window.cornerstone.cache.getVolumes().length);
  await click('Confirm and Hide').catch(() => {});
  await pause(1500);
  // while a training takes the cores, OHIF's views may not be ready for the first answer: then a user connects again
  for (let attempt = 1; ; attempt++) {
    await answered('info', 'GET', '/info/', () => page.click('.monaiLabelPanel button.actionButton'));
    try {
      const made = () => window.services.segmentationService.getLabelmapVolume('1');
      await page.waitForFunction(made, { timeout: 10000, polling: 200 });
      break;
    } catch (error) {
      if (attempt === 9) throw error;
    }
  }
  await pause(500);
}

// OHIF's own label volume: voxels by segment's name, or all of it with its geometry.
const counts = () => page.evaluate(() => {
  const { segments } = window.services.segmentationService.getSegmentation('1');
  const found = {};
  for (const value of window.services.segmentationService.getLabelmapVolume('1').voxelManager.getCompleteScalarDataArray()) {
    if (value) found[segments[value].label] = (found[segments[value].label] ?? 0) + 1;
  }
  return found;
});
const labelVolume = () => page.evaluate(() => {
  const volume = window.services.segmentationService.getLabelmapVolume('1');
  const { segments } = window.services.segmentationService.getSegmentation('1');
  return {
    dimensions: [...volume.dimensions], spacing: [...volume.spacing], origin: [...volume.origin],
    direction: [...volume.direction], values: [...volume.voxelManager.getCompleteScalarDataArray()],
    names: Object.fromEntries(Object.entries(segments).map(([value, segment]) => [value, segment.label])),
  };
});

// The slice of the first view, by its number along the volume's third axis.
const shownSlice = () => page.evaluate(() => {
  const { viewport } = window.cornerstone.getEnabledElements()[0];
  const { imageData } = window.services.segmentationService.getLabelmapVolume('1');
  return imageData.worldToIndex(viewport.getCamera().focalPoint)[2];
});

// Pixels of the viewports that are not grey: drawn segments. The image itself is grey.
const coloured = () => page.evaluate(() => window.cornerstone.getEnabledElements().map(({ viewport }) => {
  const canvas = viewport.getCanvas();
  const copy = document.createElement('canvas');
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext('2d');
  context.drawImage(canvas, 0, 0);
  const { data } = context.getImageData(0, 0, copy.width, copy.height);
  let found = 0;
  for (let i = 0; i < data.length; i += 4) {
    const pixel = [data[i], data[i + 1], data[i + 2]];
    found += Math.max(...pixel) - Math.min(...pixel) > 24;
  }
  return found;
}));
const look = async () => ({ voxels: await counts(), coloured: await coloured() });

// What is drawn after a while, and a screenshot of it.
async function note(name) {
  await pause(1000);
  seen[name] = { ...await look(), volume: await labelVolume() };
  await shoot(name);
}

// The mouse on points of the patient: a click on one, or a drag through several.
let view = 0; // axial
async function drag(...points) {
  const jump = (view, world) => window.cornerstone.getEnabledElements()[view].viewport.jumpToWorld(world);
  await page.evaluate(jump, view, points[0]);
  await pause(200);
  const places = await page.evaluate((view, points) => {
    const { viewport } = window.cornerstone.getEnabledElements()[view];
    const place = viewport.canvas.getBoundingClientRect();
    return points.map(viewport.worldToCanvas).map(([x, y]) => [place.x + x, place.y + y]);
  }, view, points);
  await page.mouse.move(...places[0]);
  await pause(100);
  await page.mouse.down();
  for (const place of places.slice(1)) await page.mouse.move(...place, { steps: 10 });
  await page.mouse.up();
}

// Prompts are answered as they are set.
const prompted = (name, ...points) => answered(name, 'POST', '/infer/', () => drag(...points));
const press = name => page.evaluate(name => document.getElementById(`medsaga${name}`).click(), name);
const choose = label => click(label, 'Point Prompts');
const run = (name, tab) => answered(name, 'POST', '/infer/', () => click('Run', tab));

const parts = {
  async studies() {
    await page.goto(`${task.server}/ohif/`, { waitUntil: 'domcontentloaded' });
    await until(() => /PHANTOM-/.test(document.body.innerText));
    seen.patients = await page.evaluate(() => document.body.innerText.match(/PHANTOM-\w+/g));
    await shoot('studies');
  },

  async connected() {
    await open(task.study);
    seen.models = await page.evaluate(() => [...document.querySelectorAll('.tab option')].map(o => o.value));
    seen.before = await look();
    await shoot('connected');
  },

  // a request that fails, sent as the panel sends them (axios): the page says why
  async refused() {
    await answered('refused', 'POST', '/infer/', () => page.evaluate(server => {
      const request = new XMLHttpRequest();
      request.open('POST', `${server}/infer/none?image=1.2&output=json`);
      request.responseType = 'arraybuffer';
      request.send();
    }, task.server));
    await until(() => /There is no model 'none'; known are/.test(document.body.innerText));
    await shoot('refused');
  },

  async automatic() {
    await run('infer', 'Auto-Segmentation');
    const drawn = async () => (await coloured()).filter(pixels => pixels > 100).length >= 2;
    for (let n = 0; n < 50 && !await drawn(); n++) await pause(200); // the views draw later
    await note('automatic');
  },

  async points() {
    await click('Point Prompts');
    await pause(500);
    await choose(task.label);
    await prompted('prompt', task.inside);
    await note('prompted');
    await choose('background');
    await prompted('prompt2', task.outside);
    await note('corrected');
  },

  async undone() {
    await press('Undo');
    await note('undone');
    await press('Undo');
    await note('undone_all');
  },

  async box() {
    await click('Point Prompts');
    await pause(500);
    await choose(task.label);
    await press('Box');
    await prompted('box', ...task.box);
    await note('boxed');
  },

  async sagittal() {
    view = 1;
    await press('Point');
    await prompted('sagittal', task.middle);
    await note('sagittal');
    view = 0;
  },

  async boxAndPoint() {
    await press('Point');
    await choose('background');
    await prompted('carve', task.middle);
    await note('carved');
    await press('Undo');
    await note('uncarved');
  },

  async scribble() {
    await choose(task.label);
    await press('Scribble');
    await prompted('scribble', ...task.line);
    await note('scribbled');
  },

  // negative points alone are no prompt; a point in what was prompted for another label is refused
  async failing() {
    await press('Point');
    await choose('anterior');
    await choose('background');
    await prompted('negative', task.outside);
    await until(() => /give at least one positive point, or a box/.test(document.body.innerText));
    await shoot('negative');
    await choose('anterior');
    await drag(task.middle);
    await until(() => /posterior.*is finished/.test(document.body.innerText));
    await note('failed_prompts');
    await choose(task.label);
  },

  async propagated() {
    await page.select('select:has(option[value=hippocampus_propagate])', 'hippocampus_propagate');
    await pause(500);
    seen.chosen = await page.evaluate(() => [...document.querySelectorAll('.clickable-row')]
      .filter(row => row.style.backgroundColor === 'darkblue').map(row => row.innerText.trim()));
    await run('propagate', 'Point Prompts');
    await note('propagated');
    await press('Undo');
    await note('unpropagated');
  },

  // an automatic mask leaves what was prompted; the answer says where to look
  async automaticAgain() {
    await click('Auto-Segmentation');
    await run('infer2', 'Auto-Segmentation');
    await until(() => /least sure on the slice that is shown/.test(document.body.innerText));
    await note('automatic_again');
    seen.shown = await shownSlice();
  },

  // the server names two slices of the volume; the view goes to one after the other
  async slices() {
    await page.evaluate(() => {
      const input = document.getElementById('medsagaSlices');
      input.value = 2;
      input.dispatchEvent(new Event('change'));
    });
    await answered('slices', 'POST', '/activelearning/first', () => press('NextSlice'));
    await until(() => /Slice 1 of 2 to label/.test(document.body.innerText));
    await shoot('slices');
    seen.slices = [await shownSlice()];
    await press('NextSlice');
    await until(() => /Slice 2 of 2 to label/.test(document.body.innerText));
    seen.slices.push(await shownSlice());
  },

  async submittedSlices() {
    await answered('submitSlices', 'PUT', '/datastore/label', () => press('Submit'));
    await until(() => /Label of \d slices submitted/.test(document.body.innerText));
    await note('submitted');
  },

  async submitted() {
    await answered('submit', 'PUT', '/datastore/label', () => press('Submit'));
    await note('submitted');
  },

  async next() {
    await click('Active Learning');
    await pause(300);
    await answered('next', 'POST', '/activelearning/', () => click('Next Sample'));
    await page.waitForSelector('.nextSampleForm button', { timeout: 20000 });
    await shoot('next');
    await Promise.all([page.waitForNavigation({ timeout: 60000 }), page.click('.nextSampleForm button')]);
    seen.nextStudy = new URL(page.url()).searchParams.get('StudyInstanceUIDs');
  },

  async training() {
    await click('Active Learning');
    await answered('train', 'POST', '/train/', () => click('Update Model'));
    await until(() => [...document.querySelectorAll('button')].some(b => b.textContent === 'Stop Training'));
    await shoot('training');
    // a reloaded page asks the server whether a training runs
    await page.reload({ waitUntil: 'domcontentloaded' });
    await connect();
    await click('Active Learning');
    await until(() => [...document.querySelectorAll('button')].some(b => b.textContent === 'Stop Training'));
    await answered('stop', 'DELETE', '/train/', () => click('Stop Training'));
    await until(() => [...document.querySelectorAll('button')].some(b => b.textContent === 'Update Model'));
  },
};

try {
  for (const part of task.parts) await parts[part]();
} catch (error) {
  seen.failed = String(error.stack ?? error);
  await shoot('failed').catch(() => {});
  process.exitCode = 1;
} finally {
  console.log(JSON.stringify(seen));
  await browser.close();
}

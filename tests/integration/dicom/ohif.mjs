// What an annotator does in OHIF, in a real browser: node ohif.mjs TASK.json
//
// TASK.json: study (UID), folder (of the screenshots), inside and outside (points in mm, L P S: of the label to prompt
// for, and of background in the same slice), label (its name), modules (folder with puppeteer-core), chromium, server,
// short (end after submitting).
// Prints one JSON object of what was seen.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const task = JSON.parse(fs.readFileSync(process.argv[2]));
const puppeteer = createRequire(path.join(task.modules, 'x.js'))('puppeteer-core');
const seen = { errors: [] };
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

// Does something and waits for the server's answer to it.
async function answered(method, part, action) {
  const [response] = await Promise.all([
    page.waitForResponse(r => r.request().method() === method && r.url().includes(part), { timeout: 90000 }),
    action(),
  ]);
  return response.status();
}

async function open(study) {
  await page.goto(`${task.server}/ohif/monai-label?StudyInstanceUIDs=${study}`, { waitUntil: 'domcontentloaded' });
  await connect();
}

async function connect() {
  await page.waitForSelector('.monaiLabelPanel button.actionButton', { timeout: 90000 });
  await until(() => window.cornerstone?.getEnabledElements().length >= 3 && window.cornerstone.cache.getVolumes().length);
  await pause(1500);
  // while a training takes the cores, OHIF's views may not be ready for the first answer: then a user connects again
  let status;
  for (let attempt = 1; ; attempt++) {
    status = await answered('GET', '/info/', () => page.click('.monaiLabelPanel button.actionButton'));
    try {
      const made = () => window.services.segmentationService.getLabelmapVolume('1');
      await page.waitForFunction(made, { timeout: 30000, polling: 200 });
      break;
    } catch (error) {
      if (attempt === 3) throw error;
    }
  }
  await pause(2000);
  return status;
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

// A mouse click on a point of the patient in the first (axial) view.
async function clickAt(world) {
  await page.evaluate(world => window.cornerstone.getEnabledElements()[0].viewport.jumpToWorld(world), world);
  await pause(700);
  const [x, y] = await page.evaluate(world => {
    const { viewport } = window.cornerstone.getEnabledElements()[0];
    const place = viewport.canvas.getBoundingClientRect();
    const [x, y] = viewport.worldToCanvas(world);
    return [place.x + x, place.y + y];
  }, world);
  await page.mouse.click(x, y);
  await pause(500);
}

async function annotate() {
  await page.goto(`${task.server}/ohif/`, { waitUntil: 'domcontentloaded' });
  await until(() => /PHANTOM-/.test(document.body.innerText));
  await click('Confirm and Hide').catch(() => {});
  seen.patients = await page.evaluate(() => document.body.innerText.match(/PHANTOM-\w+/g));
  await shoot('studies');

  await open(task.study);
  seen.models = await page.evaluate(() => [...document.querySelectorAll('.tab option')].map(o => o.value));
  seen.before = await look();
  await shoot('connected');

  // a request that fails, sent as the panel sends them (axios): the page says why
  seen.refused = await answered('POST', '/infer/', () => page.evaluate(server => {
    const request = new XMLHttpRequest();
    request.open('POST', `${server}/infer/none?image=1.2&output=json`);
    request.responseType = 'arraybuffer';
    request.send();
  }, task.server));
  await until(() => /There is no model 'none'; known are/.test(document.body.innerText));
  await shoot('refused');

  seen.infer = await answered('POST', '/infer/', () => click('Run', 'Auto-Segmentation'));
  await pause(2500);
  seen.automatic = { ...await look(), volume: await labelVolume() };
  await shoot('automatic');

  await click('Point Prompts');
  await pause(500);
  await click(task.label, 'Point Prompts');
  await clickAt(task.inside);
  seen.prompt = await answered('POST', '/infer/', () => click('Run', 'Point Prompts'));
  await pause(2500);
  seen.prompted = { ...await look(), volume: await labelVolume() };
  await shoot('prompted');

  await click('background', 'Point Prompts');
  await clickAt(task.outside);
  await click(task.label, 'Point Prompts');
  seen.prompt2 = await answered('POST', '/infer/', () => click('Run', 'Point Prompts'));
  await pause(2500);
  seen.corrected = { ...await look(), volume: await labelVolume() };
  await shoot('corrected');

  if (await page.$('#medsagaSubmit')) {
    seen.submit = await answered('PUT', '/datastore/label', () => page.click('#medsagaSubmit'));
    await pause(1500);
    await shoot('submitted');
  }
  if (task.short) return;

  await click('Active Learning');
  await pause(300);
  seen.next = await answered('POST', '/activelearning/', () => click('Next Sample'));
  await page.waitForSelector('.nextSampleForm button', { timeout: 20000 });
  await shoot('next');
  await Promise.all([page.waitForNavigation({ timeout: 60000 }), page.click('.nextSampleForm button')]);
  seen.nextStudy = new URL(page.url()).searchParams.get('StudyInstanceUIDs');

  await open(task.study); // the next one may be an X-ray, which this mode of OHIF does not show in three views
  await click('Active Learning');
  seen.train = await answered('POST', '/train/', () => click('Update Model'));
  await until(() => [...document.querySelectorAll('button')].some(b => b.textContent === 'Stop Training'));
  await shoot('training');
  // a reloaded page asks the server whether a training runs
  await page.reload({ waitUntil: 'domcontentloaded' });
  await connect();
  await click('Active Learning');
  await until(() => [...document.querySelectorAll('button')].some(b => b.textContent === 'Stop Training'));
  seen.stop = await answered('DELETE', '/train/', () => click('Stop Training'));
  await until(() => [...document.querySelectorAll('button')].some(b => b.textContent === 'Update Model'));
}

try {
  await annotate();
} catch (error) {
  seen.failed = String(error.stack ?? error);
  await shoot('failed').catch(() => {});
  process.exitCode = 1;
} finally {
  console.log(JSON.stringify(seen));
  await browser.close();
}

// What is added to MONAI Label's panel, and what its parts do otherwise. The panel keeps points only, forgets them and
// the organ when the model is changed, asks for a mask without the organ's name, and draws an automatic mask over all.

const TOOLS = { ProbeMONAILabel: 'Point', RectangleROIThreshold: 'Box', MedsagaScribble: 'Scribble' };

// else the first click in another view only chooses the view: a prompt would be lost
window.config.activateViewportBeforeInteraction = false;

function activate(toolName) {
  const group = window.services.toolGroupService.getToolGroup();
  if (!group.hasTool(toolName)) group.addTool(toolName, { calculateStats: false });
  window.commandsManager.runCommand('setToolActive', { toolName });
}

// Turn the views to the volume's own slices: in one tilted against them the mask of a slice would be a stripe, and no
// line can be drawn.
function alignViews() {
  for (const { viewport } of window.cornerstone.getEnabledElements()) {
    const { focalPoint, position, viewPlaneNormal, viewUp } = viewport.getCamera();
    const [across, up] = [axisAlong(viewPlaneNormal), axisAlong(viewUp)];
    if (viewport.type !== 'orthographic' || across === up) continue;
    const [normal, upwards] = [nearest(viewPlaneNormal, across), nearest(viewUp, up)];
    const distance = Math.hypot(...position.map((v, n) => v - focalPoint[n]));
    const from = focalPoint.map((v, n) => v + distance * normal[n]);
    viewport.setCamera({ focalPoint, position: from, viewPlaneNormal: normal, viewUp: upwards });
    viewport.render();
  }
}

function completed({ detail: { annotation } }) {
  const tool = TOOLS[annotation.metadata.toolName];
  if (!tool) return;
  const kind = tool === 'Box' ? 'box' : tab.state.currentLabel === 'background' ? 'background' : 'foreground';
  const prompt = { organ, kind, line: tool === 'Scribble', annotation };
  inTurn(() => add(prompt));
}

function activated({ detail: { toolName } }) {
  for (const [tool, text] of Object.entries(TOOLS))
    document.getElementById(`medsaga${text}`).style.outline = tool === toolName ? '2px solid white' : '';
}

// The component that React keeps behind an element or around another, by a method that it has.
function componentOf(element, method) {
  let fiber = element[Object.keys(element).find(key => key.startsWith('__reactFiber$'))];
  while (fiber && !fiber.stateNode?.[method]) fiber = fiber.return;
  return fiber?.stateNode;
}

function changeTab(input) {
  tab = componentOf(input, 'onRunInference');
  [organ, prompts, steps] = [undefined, [], []];
  takenBack = false;
  finished.clear();
  corrected.clear();
  forgetSlices();
  tab.onChangeLabel = name => {
    if (!name) return; // the tab is left
    if (name !== 'background') organ = name;
    tab.setState({ currentLabel: name });
    show();
  };
  tab.onSelectModel = model => {
    const labels = tab.getModelLabels(model);
    if (!labels.includes(organ)) organ = undefined;
    tab.setState({ currentModel: model, currentLabel: organ ?? null, availableOrgans: labels });
    show();
  };
  const enter = tab.onEnterActionTab;
  tab.onEnterActionTab = () => {
    alignViews();
    enter();
  };
  tab.onLeaveActionTab = () => activate('WindowLevel');
  tab.onRunInference = () => inTurn(() => ask(organ));
  tab.clearPoints = () => finish(item => item.organ === organ);
  tab.clearAllPoints = () => finish();
}

// Masks of the other tabs leave what was prompted or submitted as it is.
function changePanel(input) {
  const panel = componentOf(input, 'updateView');
  const { client, updateView } = panel;
  panel.client = () => {
    const made = client();
    const infer = made.infer.bind(made);
    // the server protects what it was asked for, and does not know what was taken back: from then on it is done here
    made.infer = (name, image, params, ...more) => {
      const replace = takenBack && 'replace' in modelOf(name).config ? { replace: true } : {};
      return infer(name, image, { ...params, ...replace }, ...more);
    };
    return made;
  };
  panel.updateView = (answer, name, ...more) =>
    inTurn(async () => {
      const [before, kept] = [drawn(), keptBut()];
      await updateView(answer, name, ...more);
      if (optionsOf(name).replace) {
        finish();
        finished.clear();
      } else if (kept.size) {
        draw(drawn().map((value, n) => (kept.has(before[n]) ? before[n] : kept.has(value) ? 0 : value)));
        const names = [...kept].map(nameOf).join(', ');
        say(`Not changed: ${names}. To draw over them, set replace in the options`, 'info');
      }
      const slice = answer.headers['medsaga-least-sure-slice']; // counted from 0 along the image's third axis
      if (slice) {
        lookAt(Number(slice));
        say('The model is least sure on the slice that is shown', 'info');
      }
    });
  panel.forceUpdate();
}

function listen(event, action) {
  window.cornerstone.eventTarget.removeEventListener(event, action); // of a study that was open before
  window.cornerstone.eventTarget.addEventListener(event, action);
}

function addPrompts(panel) {
  const input = panel.querySelector('input[value=pointprompts]');
  changeTab(input);
  changePanel(input);
  const { addTool, Enums, PlanarFreehandROITool } = window.cornerstoneTools;
  addTool(class extends PlanarFreehandROITool { static toolName = 'MedsagaScribble'; });
  listen(Enums.Events.ANNOTATION_COMPLETED, completed);
  listen(Enums.Events.TOOL_ACTIVATED, activated);
  const buttons = document.createElement('div');
  for (const [tool, text] of Object.entries(TOOLS))
    buttons.append(addButton(`medsaga${text}`, text, `Set a ${text.toLowerCase()}`, () => activate(tool)));
  buttons.append(addButton('medsagaUndo', 'Undo', 'Take back the last prompt', undo));
  input.parentElement.querySelector('.modelSelector').before(buttons); // OHIF's messages cover what is further down
}

function addToPanel() {
  const panel = document.querySelector('.monaiLabelPanel');
  if (!panel?.querySelector('.tabs') || document.getElementById('medsagaSubmit')) return;
  const button = addButton('medsagaSubmit', 'Submit Label', 'Save what is drawn', submit);
  panel.querySelector('.settingsTable').after(button);
  addSlices(button);
  addPrompts(panel);
}

new MutationObserver(addToPanel).observe(document, { childList: true, subtree: true });

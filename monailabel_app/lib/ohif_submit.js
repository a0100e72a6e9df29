// Appended to OHIF's app-config.js (lib/ohif.py): the address of the server, the reason where a request fails, and a
// button in MONAI Label's panel that submits the label as it is drawn. OHIF's own panel can ask for segmentations and
// train on labels, but has nothing to save one with, and says only that something failed.
(() => {
  // The panel reads its server's address from this cookie, and else takes port 8000 of this host.
  const server = location.origin + window.config.routerBasename.replace(/ohif\/$/, '');
  document.cookie = `MONAILABEL_SERVER_URL=${server}; SameSite=Strict`;

  const BUTTON = 'medsagaSubmit';
  const say = (message, type) =>
    window.services.uiNotificationService.show({ title: 'MONAI Label', message, type, duration: 6000 });

  const detailOf = async answer => {
    const { detail } = await answer.json().catch(() => ({}));
    return typeof detail === 'string' ? detail : answer.status;
  };

  const { open } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url, ...more) {
    this.addEventListener('load', async () => {
      const { href } = new URL(url, location);
      if (this.status < 400 || !href.startsWith(server) || href.startsWith(`${server}proxy/`)) return;
      say(`${await detailOf(new Response(this.response, { status: this.status }))}`, 'error');
    });
    return open.call(this, method, url, ...more);
  };

  async function submit() {
    const { segmentationService, viewportGridService, displaySetService } = window.services;
    const volume = segmentationService.getLabelmapVolume('1');
    const values = Uint8Array.from(volume?.voxelManager.getCompleteScalarDataArray() ?? []);
    if (!values.some(value => value)) return say('Nothing is segmented yet', 'warning');
    const { viewports, activeViewportId } = viewportGridService.getState();
    const shown = displaySetService.getDisplaySetByUID(viewports.get(activeViewportId).displaySetInstanceUIDs[0]);
    // each segment with its value in the mask
    const { segments } = segmentationService.getSegmentation('1');
    const names = Object.keys(segments).map(Number).sort((a, b) => a - b);
    const form = new FormData();
    form.append('params', JSON.stringify({ label_info: names.map(n => ({ name: segments[n].label, segmentIndex: n })) }));
    form.append('label', new Blob([values]), 'label.bin');
    const url = new URL('datastore/label', document.getElementById('monailabelServerURL').value);
    url.searchParams.append('image', shown.SeriesInstanceUID);
    const answer = await fetch(url, { method: 'PUT', body: form });
    if (answer.ok) return say('Label submitted', 'success');
    say(`Label not submitted: ${await detailOf(answer)}`, 'error');
  }

  function add() {
    const panel = document.querySelector('.monaiLabelPanel');
    if (!panel?.querySelector('.tabs') || document.getElementById(BUTTON)) return;
    const button = document.createElement('button');
    button.id = BUTTON;
    button.className = 'actionButton';
    button.textContent = 'Submit Label';
    button.style.cssText = 'margin: 6px 0; padding: 2px 12px; font-size: 14px';
    button.onclick = async () => {
      button.disabled = true;
      await submit().catch(error => say(`Label not submitted: ${error.message}`, 'error'));
      button.disabled = false;
    };
    panel.querySelector('.settingsTable').after(button);
  }

  new MutationObserver(add).observe(document, { childList: true, subtree: true });
})();

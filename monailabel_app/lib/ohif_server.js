// The address of the server, and the reason where one of its answers is an error: OHIF says only that something failed.

// The panel reads its server's address from this cookie, and else takes port 8000 of this host.
const server = location.origin + window.config.routerBasename.replace(/ohif\/$/, '');
document.cookie = `MONAILABEL_SERVER_URL=${server}; SameSite=Strict`;

const say = (message, type) =>
  window.services.uiNotificationService.show({ title: 'MONAI Label', message, type, duration: 6000 });

const detailOf = async answer => {
  const { detail } = await answer.json().catch(() => ({}));
  return typeof detail === 'string' ? detail : `${answer.status}`;
};

function failed(message) {
  console.error(`MONAI Label: ${message}`);
  say(message, 'error');
}

const { open } = XMLHttpRequest.prototype;
XMLHttpRequest.prototype.open = function (method, url, ...more) {
  const { href } = new URL(url, location);
  // not of OHIF's own files and images; and that no training runs is an answer
  if (href.startsWith(server) && !/^(ohif|proxy)\/|check_if_running/.test(href.slice(server.length))) {
    this.addEventListener('error', () => failed('The server does not answer'));
    this.addEventListener('load', async () => {
      if (this.status >= 400) failed(await detailOf(new Response(this.response, { status: this.status })));
    });
  }
  return open.call(this, method, url, ...more);
};

// A button of MONAI Label's panel. One thing is done at a time, in the order in which it was asked for.
let turn = Promise.resolve();
const inTurn = action => (turn = turn.then(action).catch(error => failed(error.message)));

function addButton(id, text, title, action) {
  const button = document.createElement('button');
  Object.assign(button, { id, title, className: 'actionButton', textContent: text });
  button.style.cssText = 'margin: 6px 3px 6px 0; padding: 2px 7px; font-size: 13px';
  button.onclick = async () => {
    button.disabled = true;
    await inTurn(action);
    button.disabled = false;
  };
  return button;
}

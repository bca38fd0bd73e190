// Search without a server: browsers start no worker from a file, so a page that is opened from one runs the worker's script in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc =
        "<!doctype html><script>self.postMessage = data => " +
        "frameElement.worker.dispatchEvent(new MessageEvent('message', {data}))</script>" +
        `<script src="${new URL(url, document.baseURI)}"></script>`;
      frame.worker = this;
      this.ready = new Promise(resolve => (frame.onload = () => resolve(frame.contentWindow)));
      document.body.append(frame);
    }

    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", {data})));
    }

    terminate() {}
  };
}

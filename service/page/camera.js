// A photograph: from the camera where the page may use it, from the device's own camera application otherwise.

import { element, find } from "./elements.js";

const QUALITY = 0.92;

export function enableCamera(onPhotograph) {
  const dialog = find("camera");
  const video = find("viewfinder");
  const fallback = find("photograph");

  find("open-camera").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch {  // no secure context, no camera, or no permission
      fallback.click();
      return;
    }
    dialog.showModal();
    await video.play();
  });
  find("take").addEventListener("click", async () => {
    onPhotograph(await frame(video));
    dialog.close();
  });
  find("close-camera").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  });
  fallback.addEventListener("change", () => {
    for (const file of fallback.files) onPhotograph(file);
    fallback.value = "";
  });
}

async function frame(video) {
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", QUALITY); });
  return new File([blob], "photograph.jpg", { type: "image/jpeg" });
}

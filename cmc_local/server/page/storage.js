// What the browser keeps: values by name, in localStorage or sessionStorage.

/** What was kept; null where that is forbidden, or not what this page wrote. */
export function read(storage, key) {
  try {
    return JSON.parse(window[storage].getItem(key));
  } catch {
    return null;
  }
}

/** Whether it could be kept; where storage is full or forbidden the page works on without. */
export function write(storage, key, value) {
  try {
    window[storage].setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** What the page shows is one visitor's. All of it is forgotten when that visitor leaves or is another one. */

const parts = [];

/** The number of the visit; what was asked in an earlier one is not shown in this. */
export let visit = 0;

/** Have `part` called when everything of the visitor's has to go. */
export function onForget(part) {
  parts.push(part);
}

export function forget() {
  visit += 1;
  for (const part of parts) part();
}

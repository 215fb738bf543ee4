/* A region that scrolls can be reached with the keyboard, and only while it scrolls. */
"use strict";

const wide = document.querySelectorAll("article :is(pre, .math, .table-wrapper)");
const mark = () => wide.forEach(part => {
  if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  else part.removeAttribute("tabindex");
});
const watch = new ResizeObserver(mark);
watch.observe(document.querySelector("article"));
document.addEventListener("toggle", mark, true);

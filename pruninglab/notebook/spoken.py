"""What keyboards and screen readers need of a widget, and ipywidgets and JupyterLab do not give.

While a menu or a choice in an output has the focus, JupyterLab takes the arrow keys to go from cell to cell, and
letters as commands. A slider of ipywidgets has no name, and tells its position instead of its value. A text that is
replaced whole, with the element that is marked as live, is not always read out. Python cannot reach the page's
elements; a few lines of JavaScript can, which the page runs when it shows the widget.
"""

from typing import Any

import ipywidgets

SCRIPT = """
const mend = box => {
  for (const control of box.querySelectorAll('select, input, button, [role=slider]'))
    control.dataset.lmSuppressShortcuts = 'true';
  for (const slider of box.querySelectorAll('.widget-slider')) {
    const handle = slider.querySelector('[role=slider]');
    handle?.setAttribute('aria-label', slider.querySelector('label').textContent);
    handle?.setAttribute('aria-valuetext', slider.querySelector('.widget-readout').textContent);
  }
  for (const choices of box.querySelectorAll('.widget-radio-box')) {
    choices.setAttribute('role', 'radiogroup');
    choices.setAttribute('aria-label', box.querySelector('.widget-html-content').textContent);
  }
  box.querySelector('.pruninglab-live')?.setAttribute('aria-live', 'polite');
};
const start = tries => {  // the widget around this may be put together later
  const box = element.closest('.pruninglab-spoken');
  if (!box) return tries && setTimeout(start, 100, tries - 1);
  new MutationObserver(() => mend(box)).observe(box, {childList: true, subtree: true});
  mend(box);
};
start(100);
"""


def spoken(*parts: Any) -> Any:
    """Widgets one below the other that can be used without a mouse and without seeing them.

    A slider is named by its description, radio buttons by the first text; what is `live` is read out when it changes.
    """
    data = {"application/javascript": SCRIPT, "text/plain": ""}
    script = ipywidgets.Output(outputs=({"output_type": "display_data", "data": data, "metadata": {}},))
    box = ipywidgets.VBox([*parts, script])
    box.add_class("pruninglab-spoken")
    return box


def live(text: Any) -> Any:
    """Mark a widget as the one whose changes are read out."""
    return text.add_class("pruninglab-live")

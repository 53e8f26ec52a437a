"""Every control of a widget, moved by keyboard and by mouse as a reader would, and what the widget says afterwards.

Each function takes the place of a cell's outputs in the page, and raises AssertionError or Playwright's TimeoutError if
a control has no name, cannot be reached, loses the focus, or changes nothing.
"""

import re

SLOW = 90e3  # milliseconds: what a widget shows may take a computation
CONTROLS = "[role=slider], select, textarea, .widget-toggle-button, button.widget-button"


def kind(area):
    """What stands in a cell's outputs: "prediction", "flip", "playground" or "explore"."""
    area.locator(f"{CONTROLS}, input[type=radio]").first.wait_for(timeout=SLOW)
    for name, selector in (
        ("prediction", "input[type=radio]"),
        ("flip", ".widget-toggle-button"),
        ("playground", "textarea"),
    ):
        if area.locator(selector).count():
            return name
    return "explore"


def told(area):
    """The text that follows the controls; it must be one that a screen reader reads out when it changes."""
    live = area.locator("[aria-live=polite]")
    assert live.count() == 1, "no text that is read out when it changes"
    return live.inner_text()


def _changes(area, act, what):
    """Do something, and wait until the widget's text is another."""
    before = told(area)
    act()
    live = area.locator("[aria-live=polite]").element_handle()
    try:
        area.page.wait_for_function("([node, before]) => node.innerText !== before", arg=[live, before], timeout=SLOW)
    except Exception as error:
        raise AssertionError(f"{what}: the text stays {before!r}") from error
    _settle(area)


def _settle(area):
    """Wait until nothing of a movement is still to come."""
    quiet = 0
    while quiet < 5:
        before = told(area)
        area.page.wait_for_timeout(100)
        idle = area.page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.status")
        quiet = quiet + 1 if idle == "idle" and told(area) == before else 0


def _focused(control):
    return control.evaluate("node => document.activeElement === node")


def reach(area):
    """From the cell on, the Tab key reaches each control, in order."""
    controls = [one for one in area.locator(CONTROLS).all() if one.is_visible()]
    area.locator("xpath=ancestor::*[contains(@class, 'jp-Notebook-cell')]").focus()
    for number, control in enumerate(controls):
        for _ in range(3):  # a slider's readout may lie between
            if _focused(control):
                break
            area.page.keyboard.press("Tab")
        assert _focused(control), f"the Tab key does not reach control {number} of {len(controls)}"


def slide(area):
    """Each slider, by arrow keys and by dragging its handle."""
    for slider in area.get_by_role("slider").all():
        name = slider.get_attribute("aria-label")
        assert name, "a slider without a name"
        assert area.get_by_role("slider", name=name).count() == 1

        def value(slider=slider):
            said = slider.get_attribute("aria-valuetext")
            beside = slider.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]").locator(".widget-readout")
            assert said == beside.inner_text(), "what is read out is not what stands beside the slider"
            return said

        now, top = (float(slider.get_attribute(f"aria-value{which}")) for which in ("now", "max"))
        before = value()
        slider.focus()
        key = "ArrowLeft" if now == top else "ArrowRight"
        _changes(area, lambda key=key: area.page.keyboard.press(key), f"slider {name}, {key}")
        assert _focused(slider), f"slider {name} loses the focus"
        assert value() != before
        before = value()
        slider.scroll_into_view_if_needed()
        track = slider.locator("xpath=ancestor::*[contains(@class, 'noUi-base')]").bounding_box()
        box, mouse = slider.bounding_box(), area.page.mouse
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        end = track["x"] + track["width"] * (0.3 if x > track["x"] + track["width"] / 2 else 0.7)

        def drag(x=x, y=y, end=end, mouse=mouse):
            mouse.move(x, y)
            mouse.down()
            mouse.move(end, y, steps=3)
            mouse.up()

        _changes(area, drag, f"slider {name}, dragged")
        assert value() != before


def choose(area):
    """Each menu, by arrow keys and by picking an entry with the mouse."""
    for label in area.locator(".widget-dropdown label").all_inner_texts():
        menu = area.get_by_label(label, exact=True)
        assert menu.count() == 1, f"menu {label}: no label of its own"
        menu.focus()
        last = menu.evaluate("node => node.selectedIndex === node.length - 1")
        key = "ArrowUp" if last else "ArrowDown"
        _changes(area, lambda key=key: area.page.keyboard.press(key), f"menu {label}, {key}")
        assert _focused(menu), f"menu {label} loses the focus"
        # the browser draws an open menu outside of the page; this is the event of a click on its entry
        other = menu.evaluate("node => (node.selectedIndex + 1) % node.length")
        _changes(area, lambda menu=menu, other=other: menu.select_option(index=other), f"menu {label}, picked")


def flip(area):
    """Two weights, by the space bar and by the mouse; then each of the buttons that choose, by both."""
    for toggle in (area.locator(".widget-toggle-button").nth(i) for i in (0, -1)):
        assert re.search(r"\d", toggle.inner_text()), "a button without a name"
        for act in ("press", "click"):
            before = toggle.inner_text()
            if act == "press":
                toggle.focus()
                _changes(area, lambda: area.page.keyboard.press("Space"), "a weight, the space bar")
                assert _focused(toggle), "the weight loses the focus"
            else:
                _changes(area, toggle.click, "a weight, a click")
            assert toggle.inner_text() != before
    buttons = area.locator("button.widget-button:not(.widget-toggle-button)")
    for i in range(buttons.count()):
        for act in ("press", "click"):
            away = area.locator(".widget-toggle-button").first  # from what the button chooses
            _changes(area, away.click, "a weight, a click")
            if act == "press":
                buttons.nth(i).focus()
                _changes(area, lambda: area.page.keyboard.press("Enter"), f"button {i}, the Enter key")
            else:
                _changes(area, buttons.nth(i).click, f"button {i}, a click")


def play(area):
    """Code is typed and run, by keyboard alone and with the mouse; the Tab key leaves the box."""
    box, button = area.get_by_label("criterion", exact=True), area.get_by_role("button", name="Run", exact=True)
    keys = area.page.keyboard
    assert box.count() == button.count() == 1

    def write(code):
        keys.press("Control+A")
        keys.type(code)

    def by_keyboard():
        box.focus()
        write("def fewer(weight):\n    return -weight.abs()")
        for _ in range(8):
            keys.press("Tab")
            if _focused(button):
                return keys.press("Enter")
        raise AssertionError("the Tab key does not reach the Run button")

    def by_mouse():
        box.click()
        write("def more(weight):\n    return weight.abs()")
        button.click()

    _changes(area, by_keyboard, "code run by keyboard")
    assert _focused(button), "the Run button loses the focus"
    _changes(area, by_mouse, "code run by mouse")
    box.click()
    write("def other(weight, gard):\n    return weight * gard")
    button.click()
    area.get_by_role("alert").wait_for(timeout=SLOW)
    assert "gard" in area.get_by_role("alert").inner_text()
    assert area.locator("textarea").count() == 1
    box.click()
    write("def more(weight):\n    return weight.abs()")
    button.click()
    area.get_by_role("alert").wait_for(state="detached", timeout=SLOW)


def pick(area, number, by):
    """A prediction's choice, by "keyboard" or by "mouse"; returns its words."""
    area.get_by_role("radiogroup").wait_for(timeout=SLOW)  # by then the widget is ready for the keyboard
    radios = area.locator("input[type=radio]")
    label = radios.nth(number).locator("xpath=ancestor::label")
    radio = area.get_by_role("radio", name=label.inner_text(), exact=True)
    assert radio.count() == 1, "a choice without a name"
    if by == "mouse":
        label.click()
    else:
        radios.first.focus()
        area.page.keyboard.press("Space")
        for _ in range(number):
            area.page.keyboard.press("ArrowDown")
    assert radio.is_checked()
    assert area.get_by_role("radiogroup").get_attribute("aria-label").startswith("Predict: ")
    return label.inner_text()


def move(area):
    """All controls of an explorer, a flipper or a playground."""
    area.locator("[aria-live=polite]").wait_for(timeout=SLOW)
    which = kind(area)
    reach(area)
    slide(area)
    choose(area)
    if which == "flip":
        flip(area)
    if which == "playground":
        play(area)
    return which

// Every text in the outputs on screen with the contrast it has against what lies behind it (WCAG 2).
() => {
  const APART = 'style, option, .highlight';  // code is in JupyterLab's own colours
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const read = colour => {  // any CSS colour, as red, green, blue, alpha
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]);
  const behind = node => {
    if (!node) return [255, 255, 255];
    const colour = read(getComputedStyle(node).backgroundColor);
    return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(node.parentElement));
  };
  const opacity = node => node ? Number(getComputedStyle(node).opacity) * opacity(node.parentElement) : 1;
  const light = colour => {
    const [r, g, b] = colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const area of document.querySelectorAll('.jp-Notebook .jp-OutputArea-output')) {
    const texts = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode, node = text.parentElement;
      if (!text.data.trim() || !node.checkVisibility({visibilityProperty: true}) || node.closest(APART)) continue;
      const ground = behind(node), colour = read(getComputedStyle(node).color);
      colour[3] *= opacity(node);
      const [low, high] = [light(ground), light(over(colour, ground))].sort((a, b) => a - b);
      const ratio = Math.round(100 * (high + 0.05) / (low + 0.05)) / 100;
      found.push([text.data.trim().slice(0, 60), ratio, getComputedStyle(node).color, ground.map(Math.round).join()]);
    }
  }
  return found;
}

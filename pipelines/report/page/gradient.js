'use strict';
// The plane of the two gradients of a step: g_1 to the right, g_2 at their angle, and the direction made of them.
const plane = { at: 0, timer: null };

function planeOfRun() {
  const run = state.run === null ? null : data.runs[state.run];
  return run && data.planes[run.key] ? data.planes[run.key] : { missing: 'this run has no training log here' };
}

function arrow(tip, text, hue, width, side) {
  const length = Math.hypot(...tip) || 1;
  return [
    { x: tip[0], y: tip[1], ax: 0, ay: 0, xref: 'x', yref: 'y', axref: 'x', ayref: 'y', showarrow: true, text: '',
      arrowhead: 2, arrowsize: 1.1, arrowwidth: width, arrowcolor: hue },
    { x: tip[0], y: tip[1], xref: 'x', yref: 'y', showarrow: false, text: `<b>${text}</b>`,
      xshift: 20 * tip[0] / length, yshift: 16 * tip[1] / length + (side || 0), font: { size: 14, color: hue } },
  ];
}

// Directions whose dot product with both wishes is above 0: a wedge, drawn as a fan.
function wedge(angles, radius) {
  const [first, second] = angles;
  let turn = second - first;
  while (turn > Math.PI) turn -= 2 * Math.PI;
  while (turn < -Math.PI) turn += 2 * Math.PI;
  const low = Math.max(-Math.PI / 2, turn - Math.PI / 2), high = Math.min(Math.PI / 2, turn + Math.PI / 2);
  const out = { x: [0], y: [0] };
  for (let k = 0; high > low && k <= 40; k += 1) {
    const angle = first + low + (high - low) * k / 40;
    out.x.push(radius * Math.cos(angle));
    out.y.push(radius * Math.sin(angle));
  }
  out.x.push(0);
  out.y.push(0);
  return out;
}

const plain = name => ({ retain: 'R', forget: 'F' }[name] || name);

function drawGradient() {
  const found = planeOfRun(), plot = byId('gradient-plot'), card = byId('gradient-card'), slider = byId('gradient-step');
  const title = state.run === null ? 'No run' : data.runs[state.run].label;
  for (const id of ['gradient-step', 'gradient-play', 'gradient-unit']) byId(id).disabled = Boolean(found.missing);
  if (found.missing) {
    stopPlaying();
    Plotly.purge(plot);
    plot.replaceChildren(make('p', { class: 'soft' }, `No picture: ${found.missing}.`));
    card.replaceChildren(make('h3', {}, title), make('p', {}, `No picture: ${found.missing}.`));
    return;
  }
  if (plot.firstChild && plot.firstChild.tagName === 'P') plot.replaceChildren();
  slider.max = found.steps.length - 1;
  plane.at = Math.min(plane.at, found.steps.length - 1);
  slider.value = plane.at;
  slider.setAttribute('aria-valuetext', `step ${found.steps[plane.at]}`);
  Plotly.react(plot, ...planePicture(found), { ...plotConfig, displayModeBar: false });
  describePlane(found, title);
}

function planePicture(found) {
  const equal = pressed(byId('gradient-unit'));
  const [one, other, cosine] = found.gradients[plane.at], direction = found.directions[plane.at];
  const angle = Math.acos(Math.max(-1, Math.min(1, cosine)));
  // True lengths on one scale for all steps so far: it grows with the trail and never jumps back.
  const sofar = found.gradients.slice(0, plane.at + 1).flatMap(g => [g[0], g[1]]);
  const size = equal ? 1 : Math.max(...sofar, ...(direction ? [Math.hypot(...direction)] : []), 1e-12);
  const tip = ([a, b, c]) => {
    const turned = Math.acos(Math.max(-1, Math.min(1, c)));
    return [[equal ? 1 : a, 0], [(equal ? 1 : b) * Math.cos(turned), (equal ? 1 : b) * Math.sin(turned)]];
  };
  const [g1, g2] = tip([one, other, cosine]);
  const wishes = [found.ascends[0] ? Math.PI : 0, found.ascends[1] ? angle + Math.PI : angle];
  const fan = wedge(wishes, 1.15 * size);
  const past = found.gradients.slice(0, plane.at + 1).map(g => tip(g)[1]);
  const [blue, red, ink] = [isDark() ? onDark['#0072B2'] : '#0072B2', isDark() ? onDark['#D55E00'] : '#D55E00', colour('ink')];
  const traces = [
    { type: 'scatter', mode: 'lines', x: fan.x, y: fan.y, fill: 'toself', fillcolor: colour('good'), line: { width: 0 }, hoverinfo: 'skip' },
    { type: 'scatter', mode: 'lines+markers', x: past.map(p => p[0]), y: past.map(p => p[1]), hoverinfo: 'skip',
      line: { color: red, width: 1 }, marker: { size: 4, color: red }, opacity: 0.35 },
  ];
  const notes = [...arrow(g1, `g<sub>${plotText(plain(found.names[0]))}</sub>`, blue, 3), ...arrow(g2, `g<sub>${plotText(plain(found.names[1]))}</sub>`, red, 3)];
  if (direction) {
    const length = Math.hypot(...direction), scale = equal && length > 0 ? 1 / length : 1;
    if (length > 0) notes.push(...arrow(direction.map(value => value * scale), 'd', ink, 4, -14));
  } else if (known(found.lengths[plane.at]) && !equal) {
    const radius = found.lengths[plane.at];
    traces.push({ type: 'scatter', mode: 'lines', hoverinfo: 'skip', line: { color: ink, width: 1.2, dash: 'dot' },
      x: Array.from({ length: 73 }, (_, k) => radius * Math.cos(k * Math.PI / 36)), y: Array.from({ length: 73 }, (_, k) => radius * Math.sin(k * Math.PI / 36)) });
  }
  const reach = 1.3 * size;
  return [traces, layout({
    showlegend: false, annotations: notes, margin: { l: 46, r: 14, t: 14, b: 40 },
    xaxis: { range: [-reach, reach], zeroline: true, title: { text: equal ? 'directions only' : 'length of a gradient' } },
    yaxis: { range: [-reach, reach], zeroline: true, scaleanchor: 'x' },
  })];
}

function describePlane(found, title) {
  const [one, other, cosine] = found.gradients[plane.at], direction = found.directions[plane.at], length = found.lengths[plane.at];
  const angle = Math.acos(Math.max(-1, Math.min(1, cosine))) * 180 / Math.PI;
  const rows = [['step', String(found.steps[plane.at])], [`|g| ${found.names[0]}`, number(one)], [`|g| ${found.names[1]}`, number(other)],
    ['cosine', `${number(cosine)} (angle ${angle.toFixed(0)}\u00b0)`], ['|d|, logged', known(length) ? number(length) : 'not logged']];
  const words = [];
  if (direction) {
    const second = [other * Math.cos(angle * Math.PI / 180), other * Math.sin(angle * Math.PI / 180)];
    const slopes = [direction[0] * one, direction[0] * second[0] + direction[1] * second[1]];
    slopes.forEach((slope, k) => {
      const moves = Math.abs(slope) < 1e-9 * Math.max(one, other) ** 2 ? 'stays' : slope > 0 ? 'falls' : 'rises';
      const asked = found.ascends[k] ? 'rises' : 'falls';
      words.push(`To first order a small step along \u2212d: the ${found.names[k]} loss ${moves}${moves === asked ? ', as asked' : moves === 'stays' ? '' : ', against what is asked'}.`);
    });
    const optimizer = ((data.runs[state.run].config || {}).optimizer || {}).name;
    if (optimizer !== 'sgd') words.push(`With ${optimizer || 'an adaptive optimizer'} the step is not exactly along \u2212d: each weight is scaled by its own history.`);
  } else {
    words.push(`d is not drawn: ${found.why_not || 'its length was not logged'}. ` + (known(length) ? 'With true lengths a dotted circle shows how long it is.' : ''));
  }
  byId('gradient-card').replaceChildren(make('h3', {}, title),
    make('dl', {}, ...rows.flatMap(([key, value]) => [make('dt', {}, key), make('dd', {}, value)])),
    ...words.map(text => make('p', {}, text)),
    ...(found.why_not && direction ? [make('p', { class: 'soft' }, found.why_not)] : []));
}

function stopPlaying() {
  if (plane.timer) clearInterval(plane.timer);
  plane.timer = null;
  const button = byId('gradient-play');
  pressed(button, false);
  button.textContent = 'play';
}

if (byId('gradient')) {
  byId('gradient-step').addEventListener('input', event => { plane.at = Number(event.target.value); drawGradient(); });
  toggle('gradient-unit', drawGradient);
  byId('gradient-play').addEventListener('click', () => {
    if (plane.timer) { stopPlaying(); return; }
    pressed(byId('gradient-play'), true);
    byId('gradient-play').textContent = 'pause';
    plane.timer = setInterval(() => {
      plane.at = (plane.at + 1) % (Number(byId('gradient-step').max) + 1);
      drawGradient();
    }, 250);
  });
  redraws.push(drawGradient);
  chosenListeners.push(() => {
    const found = planeOfRun();
    if (!found.missing && state.point !== null) plane.at = Math.max(0, found.steps.findLastIndex(step => step <= data.points[state.point].step));
    drawGradient();
  });
}

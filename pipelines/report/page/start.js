'use strict';
// Opens with the run that has most on the front and a log, so that no panel begins empty.
(() => {
  const counts = new Map();
  (drawn.front || []).forEach(n => counts.set(data.points[n].run, (counts.get(data.points[n].run) || 0) + 1));
  const own = data.runs.map((run, k) => k).filter(k => byRun[k].length || data.curves[data.runs[k].key]);
  const worth = k => (counts.get(k) || 0) + (data.curves[data.runs[k].key] ? 1000 : 0) - (data.runs[k].method === 'finetune' ? 2000 : 0);
  own.sort((a, b) => worth(b) - worth(a) || a - b);
  if (own.length) chooseRun(own[0], null, false);
  else describeRun();
})();

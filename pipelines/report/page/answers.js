'use strict';
// Answers of the target, the chosen checkpoint and the retrained reference, side by side.
function reply(heading, answer) {
  const [text, probability, rouge] = answer || [null, null, null];
  const told = [known(rouge) ? `ROUGE-L ${number(rouge, 3)}` : null, known(probability) ? `probability of the true answer ${number(probability, 3)}` : null];
  return make('div', { class: 'reply' }, make('h4', {}, heading),
    make('p', known(text) ? {} : { class: 'soft' }, known(text) ? (text || '(nothing)') : 'no answer was generated'),
    make('p', { class: 'soft' }, told.filter(known).join(' \u00b7 ')));
}

function drawAnswers() {
  const run = byId('answers-run').value, group = byId('answers-group').value;
  const columns = ['target', run, 'reference'].filter(key => known(data.answers.columns[key]));
  byId('answers-list').replaceChildren(...data.answers.questions.filter(one => one.group === group).map(one =>
    make('div', { class: 'question' },
      make('p', { class: 'asked' }, one.question),
      make('p', { class: 'truth' }, make('span', { class: 'tag' }, 'true answer'), ' ' + one.truth),
      make('div', { class: 'replies' }, ...columns.map(key => reply(data.answers.columns[key], one.answers[key]))))));
}

if (byId('answers')) {
  const groups = [...new Set(data.answers.questions.map(one => one.group))];
  byId('answers-group').append(...groups.map(group => make('option', { value: group }, group)));
  const runs = Object.keys(data.answers.columns).filter(key => key !== 'target' && key !== 'reference');
  byId('answers-run').append(...runs.map(key => make('option', { value: key }, data.answers.columns[key])));
  byId('answers-note').textContent = [
    'A few questions of each group, evenly spaced. Of each run the checkpoint on the front that forgets and keeps most, else its last.',
    ...(data.answers.generated ? [] : ['No answers were generated in this evaluation.']), ...data.answers.notes,
  ].join(' ');
  byId('answers-run').addEventListener('change', drawAnswers);
  byId('answers-group').addEventListener('change', drawAnswers);
  drawAnswers();
  chosenListeners.push(() => {
    const key = state.run === null ? null : data.runs[state.run].key;
    if (key in data.answers.columns && runs.includes(key)) { byId('answers-run').value = key; drawAnswers(); }
  });
}

document.documentElement.classList.add('js');
const cards = [...document.querySelectorAll('.case')];
function compare(card) {
  const figures = card.querySelectorAll('figure'),
    pic = figures[2].querySelector('.pic'),
    still = pic && pic.querySelector('.still'),
    tools = card.querySelector('.compare');
  if (!still || !tools) return;
  const under = figures[1].querySelector('.still').cloneNode(),
    edge = document.createElement('div'),
    range = tools.querySelector('input'),
    button = tools.querySelector('button');
  under.className = 'under';
  under.alt = '';
  edge.className = 'edge';
  pic.append(under, edge);
  pic.classList.add('cuts');
  const cut = (v) => {
    pic.style.setProperty('--cut', v + '%');
    pic.classList.toggle('whole', v <= 0 || v >= 100);
    range.value = v;
  };
  const drag = (e) => {
    const r = pic.getBoundingClientRect();
    cut(Math.max(0, Math.min(100, (100 * (e.clientX - r.left)) / r.width)));
  };
  range.addEventListener('input', () => cut(+range.value));
  pic.addEventListener('pointerdown', (e) => {
    pic.setPointerCapture(e.pointerId);
    drag(e);
    e.preventDefault();
  });
  pic.addEventListener('pointermove', (e) => {
    if (e.buttons) drag(e);
  });
  const blink = (on) => {
    pic.style.setProperty('--cut', on ? '100%' : range.value + '%');
  };
  for (const [name, on] of [
    ['pointerdown', true],
    ['pointerup', false],
    ['pointerleave', false],
    ['blur', false],
  ])
    button.addEventListener(name, () => blink(on));
  button.addEventListener('keydown', (e) => {
    if (e.key === ' ' || e.key === 'Enter') {
      blink(true);
      e.preventDefault();
    }
  });
  button.addEventListener('keyup', () => blink(false));
  cut(0);
}
function slide(card) {
  const find = (q) => card.querySelector(q),
    data = find('script');
  if (!data) return;
  const stop = JSON.parse(data.textContent),
    slider = find('.slide input'),
    last = card.querySelectorAll('figure')[2],
    map = find('.map');
  const show = () => {
    const i = +slider.value;
    last.querySelector('.still').src = stop.src[i];
    if (map) map.src = stop.map[i];
    last.querySelector('.t').textContent = stop.title[i];
    last.querySelector('.p b').textContent = stop.p[i];
    last.querySelector('.bar i').style.width = stop.bar[i] + '%';
    find('.slide output').textContent = stop.size[i];
    slider.setAttribute('aria-valuetext', stop.size[i] + ', p = ' + stop.p[i]);
    find('.here').setAttribute('cx', stop.x[i]);
    find('.here').setAttribute('cy', stop.y[i]);
  };
  slider.addEventListener('input', show);
  const end = slider.value;
  addEventListener('beforeprint', () => {
    slider.dataset.was = slider.value;
    slider.value = end;
    show();
  });
  addEventListener('afterprint', () => {
    slider.value = slider.dataset.was;
    show();
  });
  show();
}
for (const card of cards) {
  slide(card);
  compare(card);
}
const tools = document.querySelector('.tools');
if (tools) {
  const which = tools.querySelector('.which'),
    order = tools.querySelector('.order'),
    home = cards[0].parentNode,
    after = cards[cards.length - 1].nextSibling;
  const arrange = () => {
    const fits = (c) =>
      !which.value ||
      (which.value === '+'
        ? !c.classList.contains('failed')
        : which.value === '-'
          ? c.classList.contains('failed')
          : c.dataset.from === which.value);
    const sorted = order.value ? [...cards].sort((a, b) => a.dataset[order.value] - b.dataset[order.value]) : cards;
    for (const c of sorted) {
      home.insertBefore(c, after);
      c.hidden = !fits(c);
    }
    tools.querySelector('output').textContent = cards.filter(fits).length + ' of ' + cards.length;
  };
  which.addEventListener('change', arrange);
  order.addEventListener('change', arrange);
  arrange();
}

// Encoded tiles as points that can be picked, and the path of the explanation between them.
export default {
  render({ model, el }) {
    const NS = 'http://www.w3.org/2000/svg',
      svg = document.createElementNS(NS, 'svg')
    svg.classList.add('hx-map')
    svg.setAttribute('role', 'img')
    svg.setAttribute('aria-label', 'map of encoded tiles; pick a point to look at it')
    const dots = document.createElementNS(NS, 'g'),
      path = document.createElementNS(NS, 'g')
    svg.append(dots, path)
    el.append(svg)
    function size() {
      const side = model.get('side')
      svg.setAttribute('viewBox', '0 0 100 100')
      svg.style.cssText = `width:${side}px;height:${side}px;border:1px solid #c9ccd2;border-radius:3px;display:block;cursor:pointer`
    }
    const make = (name, props) => {
      const e = document.createElementNS(NS, name)
      for (const k in props) e.setAttribute(k, props[k])
      return e
    }
    function points() {
      const colours = model.get('colours'),
        names = model.get('names')
      dots.replaceChildren(
        ...model.get('points').map(([px, py, c], k) => {
          const dot = make('circle', {
            cx: px,
            cy: py,
            r: 1.1,
            fill: colours[c % colours.length],
            'fill-opacity': 0.7,
            'data-k': k,
          })
          const title = document.createElementNS(NS, 'title')
          title.textContent = `${names[c]}, tile ${k}`
          dot.append(title)
          return dot
        }),
      )
    }
    function here() {
      const p = model.get('path'),
        kids = []
      if (p.length > 1)
        kids.push(
          make('line', {
            x1: p[0][0],
            y1: p[0][1],
            x2: p[1][0],
            y2: p[1][1],
            stroke: 'currentColor',
            'stroke-width': 0.7,
          }),
        )
      p.forEach(([px, py], k) =>
        kids.push(
          make('circle', {
            cx: px,
            cy: py,
            r: k ? 1.8 : 1.4,
            fill: k ? 'none' : 'currentColor',
            stroke: 'currentColor',
            'stroke-width': 0.7,
          }),
        ),
      )
      path.replaceChildren(...kids)
      path.style.color = 'var(--jp-ui-font-color1, #22252b)'
    }
    svg.addEventListener('click', (e) => {
      // the nearest point, so that nobody has to hit one of a millimetre
      const r = svg.getBoundingClientRect(),
        px = (100 * (e.clientX - r.left)) / r.width,
        py = (100 * (e.clientY - r.top)) / r.height
      let best = -1,
        far = 16
      model.get('points').forEach(([x, y], k) => {
        const d = (x - px) ** 2 + (y - py) ** 2
        if (d < far) {
          far = d
          best = k
        }
      })
      if (best >= 0) {
        model.set('picked', best)
        model.save_changes()
      }
    })
    model.on('change:points', points)
    model.on('change:path', here)
    model.on('change:side', size)
    size()
    points()
    here()
  },
}

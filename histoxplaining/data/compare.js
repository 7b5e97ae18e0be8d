// Two pictures of one place under a divider: drag it, wheel to zoom, drag with shift (or zoomed, the second button) to pan, space to blink, arrows to move along the path, digits for alternatives.
export default {
  render({ model, el }) {
    const box = document.createElement('div')
    box.className = 'hx-compare'
    box.tabIndex = 0
    box.setAttribute('role', 'slider')
    box.setAttribute('aria-label', 'divider between reconstruction (left) and edited picture (right)')
    box.style.cssText =
      'position:relative;overflow:hidden;border:1px solid #c9ccd2;border-radius:3px;background:#fff;touch-action:none;cursor:ew-resize;outline-offset:2px'
    const [before, after, map] = ['reconstruction', 'edited picture', 'where it changed'].map((alt) => {
      const im = document.createElement('img')
      im.alt = alt
      im.draggable = false
      im.style.cssText =
        'position:absolute;inset:0;width:100%;height:100%;transform-origin:0 0;user-select:none;max-width:none'
      return im
    })
    const line = document.createElement('div')
    line.style.cssText =
      'position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff;box-shadow:0 0 0 1px rgba(34,37,43,.55);pointer-events:none'
    const right = document.createElement('div')
    right.style.cssText = 'position:absolute;inset:0;overflow:hidden'
    right.append(after, map)
    box.append(before, right, line)
    el.append(box)
    let zoom = 1,
      x = 0,
      y = 0,
      blink = false,
      held = null
    const clamp = (v, low, high) => Math.min(Math.max(v, low), high)
    function draw() {
      const side = model.get('side'),
        cut = blink ? 100 : model.get('cut')
      box.style.width = box.style.height = side + 'px'
      x = clamp(x, side * (1 - zoom), 0)
      y = clamp(y, side * (1 - zoom), 0)
      for (const im of [before, after, map]) im.style.transform = `translate(${x}px,${y}px) scale(${zoom})`
      for (const [im, k] of [
        [before, 'before'],
        [after, 'after'],
        [map, 'map'],
      ])
        if (im.src !== model.get(k)) im.src = model.get(k)
      map.style.opacity = model.get('opacity')
      map.hidden = !model.get('opacity')
      right.style.clipPath = `inset(0 0 0 ${cut}%)`
      line.style.left = cut + '%'
      line.hidden = blink || cut <= 0 || cut >= 100
      box.setAttribute('aria-valuenow', Math.round(cut))
      box.setAttribute('aria-valuemin', 0)
      box.setAttribute('aria-valuemax', 100)
    }
    const at = (e) => {
      const r = box.getBoundingClientRect()
      return [e.clientX - r.left, e.clientY - r.top, r.width]
    }
    box.addEventListener('pointerdown', (e) => {
      held = [e.clientX, e.clientY]
      box.setPointerCapture(e.pointerId)
      box.focus({ preventScroll: true })
      if (!e.shiftKey && e.button === 0) set(at(e))
    })
    box.addEventListener('pointermove', (e) => {
      if (!held) return
      if (e.shiftKey || e.buttons === 2) {
        x += e.clientX - held[0]
        y += e.clientY - held[1]
        held = [e.clientX, e.clientY]
        draw()
      } else set(at(e))
    })
    for (const end of ['pointerup', 'pointercancel'])
      box.addEventListener(end, () => {
        held = null
        model.save_changes()
      })
    box.addEventListener('contextmenu', (e) => e.preventDefault())
    box.addEventListener(
      'wheel',
      (e) => {
        e.preventDefault()
        const [px, py] = at(e),
          to = clamp(zoom * Math.exp(-e.deltaY / 400), 1, 12)
        x = px - ((px - x) * to) / zoom
        y = py - ((py - y) * to) / zoom
        zoom = to
        draw()
      },
      { passive: false },
    )
    box.addEventListener('dblclick', () => {
      zoom = 1
      draw()
    })
    function set([px, , width]) {
      model.set('cut', clamp((100 * px) / width, 0, 100))
      draw()
    }
    box.addEventListener('keydown', (e) => {
      if (e.key === ' ') {
        e.preventDefault()
        blink = true
        draw()
      } else if (e.key === 'ArrowLeft' || e.key === 'ArrowRight') {
        e.preventDefault()
        model.send({ move: e.key === 'ArrowLeft' ? -1 : 1 })
      } else if (/^[1-9]$/.test(e.key)) model.send({ alternative: Number(e.key) })
    })
    box.addEventListener('keyup', (e) => {
      if (e.key === ' ') {
        blink = false
        draw()
      }
    })
    box.addEventListener('blur', () => {
      blink = false
      draw()
    })
    for (const k of ['before', 'after', 'map', 'cut', 'opacity', 'side']) model.on('change:' + k, draw)
    draw()
  },
}

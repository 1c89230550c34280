// The socket of a context: cells come from it, frames go to it. See `frames`.
'use strict'

const fs = require('node:fs')
const net = require('node:net')

const SOCKET = 3
const MAX_FRAME = 128 << 20
const daemon = new net.Socket({ fd: SOCKET, readable: true, writable: true })
const clock = new Int32Array(new SharedArrayBuffer(4))

// At once, like what is printed: what was said before comes before, the rest after.
function send(kind, payload) {
  const body = Buffer.from(JSON.stringify(payload))
  const data = Buffer.concat([Buffer.from(`${kind} ${body.length}\n`), body])
  for (let sent = 0; sent < data.length; ) sent += whenPossible(() => fs.writeSync(SOCKET, data, sent))
}

// Send a result and wait until the daemon has passed it on.
function sendAndWait(payload) {
  send('P', payload)
  const answer = Buffer.alloc(4)
  for (let got = 0; got < answer.length; ) {
    const count = whenPossible(() => fs.readSync(SOCKET, answer, got, answer.length - got, null))
    if (count === 0) process.exit(0)
    got += count
  }
}

function whenPossible(action) {
  for (;;) {
    try {
      return action()
    } catch (error) {
      if (error.code !== 'EAGAIN') process.exit(0) // the daemon has gone
      Atomics.wait(clock, 0, 0, 1)
    }
  }
}

let received = Buffer.alloc(0)
const cells = []
let waiting = null

daemon.on('data', (data) => {
  received = Buffer.concat([received, data])
  for (;;) {
    const end = received.indexOf(10)
    if (end < 0) return
    const [kind, length] = received.subarray(0, end).toString().split(' ')
    const size = Number(length)
    if (!(size <= MAX_FRAME)) process.exit(1)
    if (received.length < end + 1 + size) return
    const payload = received.subarray(end + 1, end + 1 + size).toString()
    received = received.subarray(end + 1 + size)
    if (kind === 'X') cells.push(JSON.parse(payload))
    if (waiting && cells.length) waiting(cells.shift())
  }
})
daemon.on('close', () => process.exit(0))
daemon.on('error', () => process.exit(0))

function nextCell() {
  return new Promise((resolve) => {
    waiting = (cell) => {
      waiting = null
      resolve(cell)
    }
    if (cells.length) waiting(cells.shift())
  })
}

module.exports = { send, sendAndWait, nextCell }

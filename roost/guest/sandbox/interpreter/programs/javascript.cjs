// A JavaScript or TypeScript context: reads cells from descriptor 3 and answers there, as `frames` says.
//
// node --expose-internals javascript.cjs LANGUAGE [DIRECTORY OF NPM PACKAGES]
//
// What a cell declares stays for the next ones, which may declare it again; `import` and `await` work at the top.
// `display(value)` and `$$.html(text)` and its like show something beside the value of the last expression.
'use strict'

const module_ = require('node:module')
const net = require('node:net')
const path = require('node:path')
const util = require('node:util')
const vm = require('node:vm')
const { rewrite } = require('./rewrite.cjs')

const [language, packages] = process.argv.slice(2)
const MAX_RESULT = 32 << 20
const MAX_FRAME = 64 << 20
const MIME = {
  text: 'text/plain',
  html: 'text/html',
  markdown: 'text/markdown',
  svg: 'image/svg+xml',
  png: 'image/png',
  jpeg: 'image/jpeg',
  pdf: 'application/pdf',
  latex: 'text/latex',
  json: 'application/json',
  javascript: 'application/javascript',
}
const METHODS = { _toHtml: 'html', _toSvg: 'svg', _toPng: 'png', _toJpeg: 'jpeg', _toMarkdown: 'markdown' }

const daemon = new net.Socket({ fd: 3, readable: true, writable: true })
const runsUserCode = { now: false, interrupt: null }
let number = 1

function send(kind, payload) {
  const body = Buffer.from(JSON.stringify(payload))
  daemon.write(Buffer.concat([Buffer.from(`${kind} ${body.length}\n`), body]))
}

// -- frames

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

// -- TypeScript

function typeStripper() {
  if (language !== 'typescript') return (code) => code
  if (packages) {
    try {
      const { transformSync } = require(path.join(packages, 'amaro'))
      return (code) => transformSync(code, { mode: 'transform' }).code
    } catch (error) {
      if (error.code !== 'MODULE_NOT_FOUND') throw error
    }
  }
  if (module_.stripTypeScriptTypes) return (code) => module_.stripTypeScriptTypes(code)
  throw new Error('TypeScript contexts need Node.js 22.13 or newer, or a template with the package amaro')
}

// -- results

function bundleOf(value) {
  const bundle = {}
  if (value !== null && (typeof value === 'object' || typeof value === 'function')) {
    for (const [method, name] of Object.entries(METHODS)) {
      if (typeof value[method] === 'function') bundle[MIME[name]] = String(value[method]())
    }
    if (typeof value._toMime === 'function') Object.assign(bundle, value._toMime())
  }
  return { 'text/plain': util.inspect(value), ...bundle }
}

function resultOf(bundle, isMain) {
  const rest = { ...bundle }
  const result = { type: 'result' }
  for (const [name, kind] of Object.entries(MIME)) {
    if (rest[kind] === undefined || rest[kind] === null) continue
    result[name] = rest[kind]
    delete rest[kind]
  }
  const text = result.text
  if (typeof text === 'string' && text.length > 1 && text[0] === text.at(-1) && `'"`.includes(text[0])) {
    result.text = text.slice(1, -1)
  }
  const whole = { ...result, extra: rest, is_main_result: isMain }
  if (JSON.stringify(whole).length <= MAX_RESULT) return whole
  process.stderr.write(`A result of over ${MAX_RESULT >> 20} MB is cut to its text.\n`)
  return { type: 'result', text: String(result.text).slice(0, 1 << 20), extra: {}, is_main_result: isMain }
}

function show(bundle) {
  if (runsUserCode.now) send('R', resultOf(bundle, false))
}

function define(name, value) {
  Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false })
}

function offerNames() {
  const require_ = module_.createRequire(path.join(process.cwd(), 'cell.js'))
  define('require', require_)
  define('module', { exports: {}, paths: [] })
  define('exports', globalThis.module.exports)
  define('display', (value) => show(bundleOf(value)))
  const $$ = { mime: show }
  for (const [name, kind] of Object.entries(MIME)) $$[name] = (value) => show({ [kind]: value })
  define('$$', $$)
  for (const name of module_.builtinModules) {
    if (/^[a-z]\w*$/.test(name) && !(name in globalThis)) {
      Object.defineProperty(globalThis, name, {
        get: () => require_(name),
        set: (value) => define(name, value),
        configurable: true,
        enumerable: false,
      })
    }
  }
}

// -- errors

function errorOf(error) {
  if (error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED') {
    return { name: 'KeyboardInterrupt', value: '', traceback: 'KeyboardInterrupt' }
  }
  if (!util.types.isNativeError(error) && !(error instanceof Error)) {
    const text = util.inspect(error)
    return { name: 'Error', value: text, traceback: `Uncaught ${text}` }
  }
  const own = (line) => line.includes(__filename) || /\(?node:(vm|internal)/.test(line)
  const lines = String(error.stack ?? error).split('\n')
  return {
    name: String(error.name),
    value: String(error.message),
    traceback: lines.filter((line) => !own(line)).join('\n'),
  }
}

function complain(error) {
  const { traceback } = errorOf(error)
  process.stderr.write(`${traceback}\n`)
}

process.on('uncaughtException', complain) // of timers and the like: the context goes on
process.on('unhandledRejection', complain)
process.on('SIGINT', () => runsUserCode.interrupt?.())

// -- cells

function compile(code, filename) {
  const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER
  const options = { filename, importModuleDynamically: loader ?? ((name) => import(resolve(name))) }
  return new vm.Script(code, options)
}

function resolve(name) {
  const found = globalThis.require.resolve(name)
  return path.isAbsolute(found) ? require('node:url').pathToFileURL(found).href : found
}

async function evaluate(source, filename) {
  const { code, awaits } = rewrite(source)
  const value = compile(code, filename).runInThisContext({ breakOnSigint: true, displayErrors: false })
  if (!awaits) return value
  const interrupted = new Promise((_, reject) => {
    const error = Object.assign(new Error('interrupted'), { code: 'ERR_SCRIPT_EXECUTION_INTERRUPTED' })
    runsUserCode.interrupt = () => reject(error)
  })
  return (await Promise.race([value, interrupted]))?.value
}

function replaceEnvironment(values) {
  const before = Object.fromEntries(Object.keys(values).map((name) => [name, process.env[name]]))
  Object.assign(process.env, values)
  return () => {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
}

async function run(cell, strip) {
  const restore = replaceEnvironment(cell.env ?? {})
  const filename = `[cell ${number}]`
  number += 1
  runsUserCode.now = true
  try {
    const value = await evaluate(strip(cell.code), filename)
    if (value !== undefined) send('R', resultOf(bundleOf(value), true))
  } catch (error) {
    send('E', { type: 'error', ...errorOf(error) })
  } finally {
    runsUserCode.now = false
    runsUserCode.interrupt = null
    restore()
  }
}

async function main() {
  let strip
  try {
    strip = typeStripper()
  } catch (error) {
    send('F', { error: error.message })
    daemon.end()
    return
  }
  offerNames()
  send('Y', { next: number })
  for (;;) {
    const cell = await nextCell()
    await run(cell, strip)
    send('D', { next: number })
  }
}

main()

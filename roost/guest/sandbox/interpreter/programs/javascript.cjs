// A JavaScript or TypeScript context: reads cells from descriptor 3 and answers there, as `frames` says.
//
// node --expose-internals javascript.cjs LANGUAGE [DIRECTORY OF NPM PACKAGES]
//
// What a cell declares stays for the next ones, which may declare it again; `import` and `await` work at the top.
// A promise that is the value is waited for. `display(value)` and `$$.html(text)` and its like show something more.
'use strict'

const module_ = require('node:module')
const path = require('node:path')
const vm = require('node:vm')
const { internalBinding } = require('internal/test/binding')
const { MIME, bundleOf, resultOf, errorOf } = require('./results.cjs')
const { rewrite } = require('./rewrite.cjs')
const { send, sendAndWait, nextCell } = require('./wire.cjs')

const [language, packages] = process.argv.slice(2)
const runsUserCode = { now: false }
let number = 1
let looking // for an interrupt, while a cell waits

// -- TypeScript

function typeStripper() {
  if (language !== 'typescript') return (code) => code
  if (packages) {
    try {
      const { transformSync } = require(path.join(packages, 'amaro'))
      return (code) => stripped(() => transformSync(code, { mode: 'transform' }).code)
    } catch (error) {
      if (error.code !== 'MODULE_NOT_FOUND') throw error
    }
  }
  if (module_.stripTypeScriptTypes) return (code) => module_.stripTypeScriptTypes(code)
  throw new Error('TypeScript contexts need Node.js 22.13 or newer, or a template with the package amaro')
}

function stripped(strip) {
  try {
    return strip()
  } catch (error) {
    throw error instanceof Error ? error : new SyntaxError(`${error.message}\n${error.snippet ?? ''}`.trimEnd())
  }
}

// -- names that cells find

function show(bundle) {
  if (runsUserCode.now) sendAndWait(resultOf(bundle, false))
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

// -- what goes wrong outside of cells

function complain(error) {
  const { traceback } = errorOf(error)
  process.stderr.write(`${traceback}\n`)
}

function warn(warning) {
  if (warning.message.includes('USE_MAIN_CONTEXT_DEFAULT_LOADER')) return // of our own doing
  process.stderr.write(`(node:${process.pid}) ${warning.name}: ${warning.message}\n`)
}

process.removeAllListeners('warning')
process.on('warning', warn)
process.on('uncaughtException', complain) // of timers and the like: the context goes on
process.on('unhandledRejection', complain)

// -- interrupts

// Node.js' own watch for SIGINT, as its REPL has it, is on all the time. With a listener it would be taken off and on
// around each cell, and a signal just then would end the process.
const watch = internalBinding('contextify')
watch.startSigintWatchdog()
const LOOK_MS = 20

// Whether there was one while no code of a cell ran; it is taken.
function takeInterrupt() {
  watch.startSigintWatchdog()
  return watch.stopSigintWatchdog()
}

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
  const interrupted = new Promise((_, reject) => {
    const error = Object.assign(new Error('interrupted'), { code: 'ERR_SCRIPT_EXECUTION_INTERRUPTED' })
    looking = setInterval(() => takeInterrupt() && reject(error), LOOK_MS)
  })
  const found = await Promise.race([value, interrupted])
  return awaits ? await Promise.race([found?.value, interrupted]) : found
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
  takeInterrupt() // the cell before had ended already
  runsUserCode.now = true
  try {
    const value = await evaluate(strip(cell.code), filename)
    if (value !== undefined) send('R', resultOf(bundleOf(value), true))
  } catch (error) {
    send('E', { type: 'error', ...errorOf(error) })
  } finally {
    runsUserCode.now = false
    clearInterval(looking)
    restore()
  }
}

async function main() {
  let strip
  try {
    strip = typeStripper()
  } catch (error) {
    send('F', { error: error.message })
    process.exit(1)
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

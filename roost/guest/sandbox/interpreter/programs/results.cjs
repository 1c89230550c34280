// Values and errors as clients know them.
'use strict'

const util = require('node:util')

const MAX_RESULT = 32 << 20
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

function errorOf(error) {
  if (error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED') {
    return { name: 'KeyboardInterrupt', value: '', traceback: 'KeyboardInterrupt' }
  }
  if (!util.types.isNativeError(error) && !(error instanceof Error)) {
    const text = util.inspect(error)
    return { name: 'Error', value: text, traceback: `Uncaught ${text}` }
  }
  const own = (line) => line.includes(__dirname) || /\(?node:(vm|internal)/.test(line)
  const lines = String(error.stack ?? error).split('\n')
  return {
    name: String(error.name),
    value: String(error.message),
    traceback: lines.filter((line) => !own(line)).join('\n'),
  }
}

module.exports = { MIME, bundleOf, resultOf, errorOf }

// Makes of a cell a script that can be run beside those before it.
//
// `let`, `const` and classes become variables of the whole context, which may be declared again. With an `await` or an
// `import` the cell becomes the body of an asynchronous function, whose result is `{value}`.
'use strict'

let acorn
try {
  acorn = require('internal/deps/acorn/acorn/dist/acorn')
} catch {
  acorn = null
}

const OPTIONS = {
  ecmaVersion: 'latest',
  sourceType: 'script',
  allowAwaitOutsideFunction: true,
  allowImportExportEverywhere: true,
  allowHashBang: true,
}
const FUNCTIONS = new Set(['FunctionDeclaration', 'FunctionExpression', 'ArrowFunctionExpression', 'PropertyDefinition'])

function rewrite(source) {
  const unchanged = { code: source, awaits: false }
  if (acorn === null) return unchanged
  const asObject = /^\s*\{[^]*\}\s*$/.test(source) && parse(`(${source})`)
  if (asObject) return rewriteTree(`(${source})`, asObject)
  const tree = parse(source)
  return tree ? rewriteTree(source, tree) : unchanged // else the engine says what is wrong with it
}

function parse(source) {
  try {
    return acorn.parse(source, OPTIONS)
  } catch {
    return null
  }
}

function rewriteTree(source, tree) {
  const awaits = tree.body.some((statement) => statement.type === 'ImportDeclaration' || hasAwait(statement))
  const edits = []
  const names = []
  const functions = []
  for (const statement of tree.body) {
    const declaration = exported(statement, edits)
    if (declaration === null) continue
    if (declaration.type === 'ImportDeclaration') rewriteImport(source, declaration, edits, names)
    else if (declaration.type === 'ClassDeclaration') rewriteClass(declaration, edits, names, awaits)
    else if (declaration.type === 'FunctionDeclaration') functions.push(declaration.id.name)
    else if (declaration.type === 'VariableDeclaration') rewriteVariables(source, declaration, edits, names, awaits)
  }
  if (!awaits) return { code: apply(source, edits), awaits }
  const last = tree.body.at(-1)
  if (last?.type === 'ExpressionStatement') {
    const { start, end } = last.expression
    edits.push([start, start, 'return { value: ('], [end, end, ') }'])
  }
  const hoisted = names.length ? `var ${names.join(', ')}; ` : ''
  const bound = functions.map((name) => `globalThis.${name} = ${name}; `).join('')
  return { code: `${hoisted}(async () => { ${bound}${apply(source, edits)}\n})()`, awaits }
}

// The declaration that is exported; a cell exports to nobody. Null when there is nothing left of it.
function exported(statement, edits) {
  if (!statement.type.startsWith('Export')) return statement
  const inner = statement.declaration
  if (!inner || (inner.type !== 'VariableDeclaration' && !inner.id && /Declaration$/.test(inner.type))) {
    edits.push([statement.start, statement.end, ''])
    return null
  }
  edits.push([statement.start, inner.start, ''])
  return inner
}

function rewriteImport(source, statement, edits, names) {
  const from = source.slice(statement.source.start, statement.source.end)
  const attributes = (statement.attributes ?? []).map(({ key, value }) => `${key.name ?? key.raw}: ${value.raw}`)
  const options = attributes.length ? `, { with: { ${attributes.join(', ')} } }` : ''
  const loaded = `await import(${from}${options})`
  const parts = []
  let whole = ''
  for (const specifier of statement.specifiers) {
    const local = specifier.local.name
    names.push(local)
    if (specifier.type === 'ImportNamespaceSpecifier') whole = local
    else if (specifier.type === 'ImportDefaultSpecifier') parts.push(`default: ${local}`)
    else parts.push(`${specifier.imported.name ?? specifier.imported.raw}: ${local}`)
  }
  const picked = parts.length ? `({ ${parts.join(', ')} } = ${whole || loaded});` : ''
  const text = whole ? `${whole} = ${loaded}; ${picked}` : picked || `${loaded};`
  edits.push([statement.start, statement.end, text])
}

function rewriteClass(statement, edits, names, awaits) {
  const name = statement.id.name
  if (awaits) names.push(name)
  edits.push([statement.start, statement.start, awaits ? `${name} = ` : `var ${name} = `], [statement.end, statement.end, ';'])
}

function rewriteVariables(source, statement, edits, names, awaits) {
  const first = statement.declarations[0].start
  if (!awaits) {
    edits.push([statement.start, first, 'var '])
    return
  }
  edits.push([statement.start, first, 'void ('])
  for (const { id, init, end } of statement.declarations) {
    collect(id, names)
    if (!init && statement.kind !== 'var') edits.push([end, end, ' = undefined'])
  }
  const end = statement.declarations.at(-1).end
  edits.push([end, end, ')'])
  if (source[statement.end - 1] !== ';') edits.push([statement.end, statement.end, ';'])
}

function collect(pattern, names) {
  if (!pattern) return
  if (pattern.type === 'Identifier') names.push(pattern.name)
  else if (pattern.type === 'ObjectPattern') pattern.properties.forEach((each) => collect(each.value ?? each.argument, names))
  else if (pattern.type === 'ArrayPattern') pattern.elements.forEach((each) => collect(each, names))
  else if (pattern.type === 'AssignmentPattern') collect(pattern.left, names)
  else if (pattern.type === 'RestElement') collect(pattern.argument, names)
}

function hasAwait(node) {
  if (node.type === 'AwaitExpression' || (node.type === 'ForOfStatement' && node.await)) return true
  if (FUNCTIONS.has(node.type)) return false
  return Object.values(node).some((child) =>
    Array.isArray(child)
      ? child.some((each) => each !== null && typeof each?.type === 'string' && hasAwait(each))
      : typeof child?.type === 'string' && hasAwait(child),
  )
}

function apply(source, edits) {
  const ordered = edits.map((edit, index) => [...edit, index]).sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[3] - b[3])
  let result = ''
  let position = 0
  for (const [start, end, text] of ordered) {
    result += source.slice(position, start) + text
    position = end
  }
  return result + source.slice(position)
}

module.exports = { rewrite }

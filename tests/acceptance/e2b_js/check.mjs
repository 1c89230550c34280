// What the programs share.

// Waits until `condition` holds.
export async function until(condition, what, patience = 15_000) {
  const deadline = Date.now() + patience
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`it did not happen: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

// A sandbox of `Class` for the time of `work`.
export async function withSandbox(Class, work, options = {}) {
  const sandbox = await Class.create({ timeoutMs: 120_000, ...options })
  try {
    return await work(sandbox)
  } finally {
    await sandbox.kill()
  }
}

"""The environment variables of user code. Pure."""

from __future__ import annotations

from roost.guest.config import StartConfig

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUNDLE_BIN = "/.roost/bin"  # the guest's own interpreter, for root file systems without one


def worker_environment(config: StartConfig) -> dict[str, str]:
    """Function Compute's documented variables win over the function's own; those win over the defaults."""
    home = config.env.get("HOME", "/root")
    env = {
        "HOME": home,
        "LANG": "C.UTF-8",
        "PATH": PATH,
        "PYTHONUSERBASE": f"{home}/.local",
        # A plain `pip install` goes where prepare_path looks, and not into the interpreter's own directory.
        "PIP_USER": "1",
        **config.env,
    }
    if config.time_zone:
        env["TZ"] = config.time_zone
    env["PATH"] = f"{BUNDLE_BIN}:{env['PATH']}:{env['PYTHONUSERBASE']}/bin"
    info = config.function
    env |= {
        "FC_FUNCTION_NAME": info.name,
        "FC_FUNCTION_HANDLER": info.handler or config.handler,
        "FC_FUNCTION_MEMORY_SIZE": str(info.memory),
        "FC_QUALIFIER": info.qualifier,
        "FC_VERSION_ID": info.version,
        "FC_REGION": config.region,
        "FC_ACCOUNT_ID": config.account,
        "FC_INSTANCE_ID": config.instance,
        "FC_FUNC_CODE_PATH": config.code,
    }
    if config.runtime == "custom":
        env |= {"FC_SERVER_PORT": str(config.port), "FC_CUSTOM_LISTEN_PORT": str(config.port)}
    return env

"""Sensors that are programs or devices: NVIDIA's tools, the DCGM exporter, and a server's own power supply (IPMI).

`found` tells power alone, `states` what GPUs tell beside it. Each reader turns a tool's text into numbers by device;
what is not told is None, and what cannot be asked is the reason in words. A reading that a tool marks as not supported
or deactivated is absent, whatever number stands beside it.
"""

import functools
import re
import shutil
import subprocess
from collections.abc import Callable

import httpx

ABSENT = {"[N/A]", "N/A", "[Not Supported]", "Not Supported", "[Unknown Error]", "[Insufficient Permissions]", ""}
NO_VALUE = 9223372036854775794  # DCGM's "not supported"; it and larger ones are no readings
QUERY = ("index", "power.draw", "temperature.gpu", "clocks.sm", "memory.used", "utilization.gpu")
DCGM = {
    "DCGM_FI_DEV_POWER_USAGE": ("watts", 1.0),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("joules", 1e-3),
    "DCGM_FI_DEV_GPU_TEMP": ("celsius", 1.0),
    "DCGM_FI_DEV_MEMORY_TEMP": ("memory_celsius", 1.0),
    "DCGM_FI_DEV_GPU_UTIL": ("utilization_percent", 1.0),
    "DCGM_FI_DEV_FB_USED": ("memory_bytes", float(1 << 20)),
}
SECONDS = 5  # that a tool may take
MEASURES = {  # of a reader -> (measure in units without prefixes, what is added to the device's name, factor)
    "celsius": ("temperature_celsius", "", 1.0),
    "memory_celsius": ("temperature_celsius", " memory", 1.0),
    "clock_mhz": ("clock_hertz", "", 1e6),
    "memory_bytes": ("memory_bytes", " used", 1.0),
    "utilization_percent": ("processor_share", "", 0.01),
    "joules": ("energy_joules", "", 1.0),
}


def found(addresses: tuple[str, ...] = ()) -> list[Callable[[], dict]]:
    """The sensors of this machine, as functions that give {device: watts, or the reason why there are none}.

    addresses: of DCGM exporters, such as "http://localhost:9400/metrics".
    """
    sensors: list[Callable[[], dict]] = []
    if nvml := _nvml():
        sensors.append(nvml)
    elif shutil.which("nvidia-smi"):
        sensors.append(lambda: watts(_run(_SMI), nvidia_smi, "gpu"))
    for address in addresses:
        sensors.append(functools.partial(_exported, address))
    for command, reader in _IPMI.items():
        if shutil.which(command[0]):
            sensors.append(functools.partial(_of_machine, command, reader))
            break
    return sensors


def states(addresses: tuple[str, ...] = ()) -> list[Callable[[], dict[str, dict[str, float]]]]:
    """What GPUs tell beside their power, as functions that give {measure: {device: value}}; none for what is absent.

    Temperatures, clocks, memory, share of the time that something ran, and joules since boot, as `MEASURES` names them.
    addresses: as for `found`.
    """
    told: list[Callable[[], dict[str, dict[str, float]]]] = []
    if shutil.which("nvidia-smi"):
        told.append(lambda: measures(nvidia_smi(_run(_SMI) or "")))
    for address in addresses:
        told.append(lambda address=address: measures(dcgm(_text(address) or "")))
    return told


def measures(read: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float]]:
    """{measure: {device: value}} of what `nvidia_smi` or `dcgm` read; watts stand in `watts`."""
    found: dict[str, dict[str, float]] = {}
    for index, values in read.items():
        for name, value in values.items():
            if value is not None and name in MEASURES:
                measure, more, factor = MEASURES[name]
                found.setdefault(measure, {})[f"gpu {index}{more}"] = value * factor
    return found


def watts(text: str | None, reader: Callable[[str], dict], name: str) -> dict:
    """Watts by device from a tool's text; the reason where it gave none."""
    if text is None:
        return {name: "its tool does not answer"}
    told = {f"{name} {index}": each.get("watts") for index, each in reader(text).items()}
    return {
        device: value if value is not None else "its driver does not tell its power" for device, value in told.items()
    }


def nvidia_smi(text: str) -> dict[str, dict[str, float | None]]:
    """What `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` tells, by the index of the GPU.

    Watts, degrees Celsius, MHz, bytes and percent. Lines of another form are errors of the tool, and are left out.
    """
    names = ("watts", "celsius", "clock_mhz", "memory_bytes", "utilization_percent")
    found = {}
    for line in text.splitlines():
        index, *values = [part.strip() for part in line.split(",")]
        if not index.isdigit() or len(values) != len(names):
            continue
        told = {name: _number(value) for name, value in zip(names, values)}
        if told["memory_bytes"] is not None:
            told["memory_bytes"] *= 1 << 20  # MiB without units
        found[index] = told
    return found


def dcgm(text: str) -> dict[str, dict[str, float | None]]:
    """What a DCGM exporter tells, by the label `gpu`; energy in joules since boot."""
    found: dict[str, dict[str, float | None]] = {}
    for line in text.splitlines():
        hit = re.fullmatch(r"(\w+)\{(.*)\} (\S+)(?: \d+)?", line.strip())
        if hit is None or hit[1] not in DCGM:
            continue
        name, factor = DCGM[hit[1]]
        index, value = re.search(r'(?:^|,)gpu="([^"]*)"', hit[2]), _number(hit[3])
        if index is not None:
            is_one = value is not None and value < NO_VALUE and value == value
            found.setdefault(index[1], {})[name] = value * factor if is_one else None
    return found


def ipmitool(text: str) -> float | None:
    """Watts that `ipmitool dcmi power reading` tells; None where the reading is deactivated or absent."""
    state = re.search(r"Power reading state is:\s*(\w+)", text)
    value = re.search(r"Instantaneous power reading:\s*(\d+(?:\.\d+)?)\s*Watts", text)
    return float(value[1]) if value and state and state[1] == "activated" else None


def freeipmi(text: str) -> float | None:
    """Watts that `ipmi-dcmi --get-system-power-statistics` tells; None where it measures nothing."""
    state = re.search(r"Power Measurement\s*:\s*(.+)", text)
    value = re.search(r"Current Power\s*:\s*(\d+(?:\.\d+)?)\s*Watts", text)
    return float(value[1]) if value and (state is None or state[1].strip() == "Active") else None


_SMI = ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
_IPMI = {
    ("ipmitool", "dcmi", "power", "reading"): ipmitool,
    ("ipmi-dcmi", "--get-system-power-statistics"): freeipmi,
}


def _number(text: str) -> float | None:
    try:
        return None if text in ABSENT else float(text)
    except ValueError:
        return None


def _run(command: tuple[str, ...]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _of_machine(command: tuple[str, ...], reader: Callable[[str], float | None]) -> dict:
    text = _run(command)
    told = None if text is None else reader(text)
    return {"machine by IPMI": f"{command[0]} tells no power" if told is None else told}


def _exported(address: str) -> dict:
    text = _text(address)
    return {"gpu": "its exporter does not answer"} if text is None else watts(text, dcgm, "gpu")


def _text(address: str) -> str | None:
    try:
        how = {"timeout": SECONDS, "trust_env": False, "verify": address.startswith("https:")}
        return httpx.get(address, **how).raise_for_status().text
    except httpx.HTTPError:
        return None


def _nvml() -> Callable[[], dict] | None:
    """NVIDIA's library, where its Python module and a device are here."""
    try:
        import pynvml  # no requirement: only machines with NVIDIA's devices have it

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # the module is missing, or its library
        return None

    def read() -> dict:
        told = {}
        for index, handle in enumerate(handles):
            try:
                told[f"gpu {index}"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000  # mW
            except pynvml.NVMLError as error:
                told[f"gpu {index}"] = f"NVML: {error}"
        return told

    return read if handles else None

"""Amounts as people read them."""


def size_text(size_bytes: float) -> str:
    """1234567 -> '1.2 MB' (decimal units, as disks and networks are sold)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"

"""A page in a browser, with all that went wrong in it."""

from typing import Any

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def opened(browser: Any, address: str, viewport: dict[str, int], dark: bool = False) -> tuple[Any, list[str]]:
    """A page, and the list that gets every error and every request to anywhere else."""
    context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
    page, trouble = context.new_page(), list[str]()
    told = ("error", "warning")
    page.on(
        "console",
        lambda said: trouble.append(f"{said.text} {said.location['url']}") if said.type in told else None,
    )
    page.on("pageerror", lambda error: trouble.append(str(error)))
    own = address.split("/", 3)[:3] if address.startswith("http") else [address]
    here = ("data:", "blob:", "/".join(own))
    page.on("request", lambda sent: None if sent.url.startswith(here) else trouble.append(sent.url))
    page.goto(address)
    return page, trouble

"""A time limit for calls that have none of their own, such as the look-up of an address, or a proxy that is silent"""
import threading
from typing import Any, Callable, List

FIRST_ANSWER = 6.  # seconds until a server has answered for the first time; later answers have more time


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Result of a call.

    Args:
        seconds: Time that it may take. A call that takes longer goes on in its thread, which ends with the process.
        call: Called in a thread.

    Raises:
        TimeoutError: It took longer.
    """
    results: List[Any] = []
    errors: List[BaseException] = []

    def target() -> None:
        try:
            results.append(call())
        except BaseException as e:
            errors.append(e)
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f'no answer within {seconds:g} s')
    return results[0]

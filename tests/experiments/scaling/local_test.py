import signal
import threading
import time

import pytest

from experiments.scaling import local


def test_ctrl_c_ends_the_wait_for_a_trial_whichever_thread_it_reaches(tmp_path):
    too_late = threading.Event()
    with local._Pool(tmp_path / "plan.json", tmp_path, 0, pin=False) as pool:

        def send():
            # As the kernel may do: to this thread, which is not the one that waits.
            time.sleep(0.5)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            # Were it slept through, the wait would end here, with an answer.
            time.sleep(60)
            too_late.set()
            with pool._changed:
                pool.busy[0] = None
                pool._answers.append((0, "{}"))
                pool._changed.notify()

        threading.Thread(target=send, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            pool.next_answer()
    assert not too_late.is_set()

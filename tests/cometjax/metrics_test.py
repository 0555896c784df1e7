from cometjax import metrics


def test_progress_off_a_terminal_prints_lines_and_silent_prints_nothing(capsys):
    for enabled in (True, False):
        progress = metrics.Progress(start=0, steps=4, enabled=enabled)
        progress.advance()
        progress.train(2, {"loss": 1.5, "tokens_per_second": 1000.0})
        progress.say("saved")
        progress.close()
        out = capsys.readouterr().out
        assert out == ("step 2/4  loss 1.5000  1,000 tokens/s\nsaved\n" if enabled else "")

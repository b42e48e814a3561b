"""A saver and an observer."""

from grpo_core import hookimpl


class Note:
    """Writes which step was reached; also listens for the end of the run."""

    def __init__(self, config=None, context=None):
        self.ended = False

    def save(self, request):
        if not request.policy.is_main:
            return None
        path = request.run_dir / "note.txt"
        path.write_text(f"{request.kind} after {request.step} steps\n")
        return path

    @hookimpl
    def grpo_run_end(self, event):
        self.ended = True


class Recorder:
    """Every lifecycle hook, one line each in `events.txt` (when there is a run folder)."""

    def __init__(self, config=None, context=None):
        run_dir = None if context is None else context.run_dir
        self.path = None if run_dir is None else run_dir / "events.txt"
        self.seen = []

    def _record(self, hook, event):
        self.seen.append((hook, event))
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(f"{hook}\n")

    @hookimpl
    def grpo_run_start(self, event):
        self._record("grpo_run_start", event)

    @hookimpl
    def grpo_evaluated(self, event):
        self._record("grpo_evaluated", event)

    @hookimpl
    def grpo_weights_synced(self, event):
        self._record("grpo_weights_synced", event)

    @hookimpl
    def grpo_rollouts_scored(self, event):
        self._record("grpo_rollouts_scored", event)

    @hookimpl
    def grpo_step_end(self, event):
        self._record("grpo_step_end", event)

    @hookimpl
    def grpo_checkpoint_saved(self, event):
        self._record("grpo_checkpoint_saved", event)

    @hookimpl
    def grpo_run_end(self, event):
        self._record("grpo_run_end", event)

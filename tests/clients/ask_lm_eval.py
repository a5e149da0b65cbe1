"""What lm-eval finds of a model by each way to it: ask_lm_eval.py JSON-OF-WAYS TASKS FILE.

A way is the name of lm-eval's backend and its arguments.
"""

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

ways, tasks, file = sys.argv[1:]
names = sorted(path.stem for path in Path(tasks).glob("*.yaml"))
manager = TaskManager(include_path=tasks, include_defaults=False)


def samples(backend, arguments):
    """Of each task the answers to each document: pairs of loglikelihood and is_greedy, or texts."""
    results = lm_eval.simple_evaluate(
        model=backend,
        model_args=arguments,
        tasks=names,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
    )
    answers = {
        name: [
            sample["filtered_resps"] for sample in sorted(results["samples"][name], key=lambda s: s["doc_id"])
        ]
        for name in names
    }
    metrics = {
        name: {
            metric: value for metric, value in results["results"][name].items() if isinstance(value, float)
        }
        for name in names
    }
    return {"answers": answers, "metrics": metrics}


found = {name: samples(*way) for name, way in json.loads(ways).items()}
Path(file).write_text(json.dumps(found))

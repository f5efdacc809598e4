import sys, json; from pathlib import Path
from qgraph.training.experiment import load_experiment
from qgraph.training.reproduce import run_key
from qgraph.training.measures import MEASURES
first, *others = sys.argv[1:]
e=load_experiment(first)
for s in e.seeds:
    m=MEASURES["language"](e,"high again",s,lambda t: print(t,flush=True))
    for n in (first,*others):
        x=load_experiment(n); k=run_key(x,"high again",s)
        assert k==run_key(e,"high again",s)
        Path("/tmp/rep",n,"runs",f"high_again-{s}.json").write_text(json.dumps({"key":k,"arm":"high again","seed":s,"metrics":m},indent=1))
    print(first,s,m,flush=True)

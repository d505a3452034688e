# make demo: set up and train the transformer on names. make test: set up and pass the tests.
# make results: train the ladder anew where its results are not there yet, draw its pictures.
# make docs: put code, diffs, tables and numbers into the articles. make book: the site, book/site/.
# make finetune: pretrain a GPT on the tales, teach it to follow instructions, judge it; where it was
# stopped it goes on.
PYTHON ?= python3
BIN := .venv/bin
PRETRAINED := --model=gpt --data=tales --tokenizer=bpe --vocab-size=1024 --block-size=512 \
	--batch-size=8 --steps=500
TAUGHT := --steps=3200
RECIPE := $(PRETRAINED) / $(TAUGHT)

.PHONY: demo test results docs book finetune clean

demo: .venv/installed
	$(BIN)/python train.py --model=transformer

test: .venv/tested
	$(BIN)/python -m pytest

results: .venv/installed
	$(BIN)/python -m book.results

docs: .venv/installed
	$(BIN)/python -m book.marks

book: .venv/booked
	$(BIN)/python -m book.site

finetune: runs/taught/result.json
	cat runs/taught/report.txt
	@echo '$(RECIPE)' | cmp -s - runs/recipe || echo "note: runs/teller and runs/taught are of" \
	"another recipe than this Makefile's, or nobody knows of which; to make them anew, first:" \
	"rm -r runs/teller runs/taught"

runs/teller/result.json: | .venv/installed
	if [ -f runs/teller/last.pt ]; then $(BIN)/python train.py --resume=runs/teller; else \
	rm -rf runs/teller && mkdir -p runs && echo '$(RECIPE)' > runs/recipe && \
	$(BIN)/python train.py $(PRETRAINED) --out=runs/teller; fi

runs/taught/result.json: runs/teller/result.json
	if [ -f runs/taught/last.pt ]; then \
	$(BIN)/python -m finetune.instruct --resume=runs/taught; else \
	rm -rf runs/taught && $(BIN)/python -m finetune.instruct --from=runs/teller $(TAUGHT) --out=runs/taught; fi

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

.venv/booked: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[book]'
	touch $@

clean:
	rm -rf .venv *.egg-info

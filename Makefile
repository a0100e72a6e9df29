# Three commands do everything on a machine with Python 3.10-3.12, make and a network for packages:
#   make demo    fine-tune, evaluate and look at the result
#   make serve   annotate sample data in OHIF or 3D Slicer, and train on the labels
#   make test    lint and all tests
# and make docs builds the pages as a site, output/site/index.html
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo serve test docs gpu-check lint bundles sbom audit install install-test constraints clean

demo: install
	$(BIN)/python -m medsaga.demo

serve: install
	$(BIN)/python -m monailabel_app.serve

# in the order of the folders: the reordering would leave the slow files, of few tests, for one core at the end
test: install-test lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# what the pages say of GPUs, on the one at hand, in ten minutes; the page is output/gpu/gpu.md
gpu-check: install-test
	$(BIN)/python -m medsaga.experiments.gpu --minutes 8

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# the bundles' configs and READMEs from bundles/base and each one's dataset.json and texts
bundles: install
	$(BIN)/python -m medsaga.bundle write

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

# uv resolves and unpacks in parallel and compiles the bytecode (the first import is several times faster with it).
# It leaves out MONAI Label's command, whose place in the wheel it does not know; pip puts that in.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f'medsaga needs Python 3.10 to 3.12, this is {v[0]}.{v[1]}; name another: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[label]'
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps -c constraints.txt monailabel
	test -x $(BIN)/monailabel
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[label,test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[label,docs]'
	touch $@

# what is installed, for those who have to know: output/sbom.json (CycloneDX 1.6), and with checksums output/requirements.txt, which
# pip install --require-hashes takes
sbom: install
	mkdir -p output
	$(BIN)/uv tool run --from cyclonedx-bom cyclonedx-py environment $(VENV) --pyproject pyproject.toml --of JSON -o output/sbom.json
	$(BIN)/uv pip compile pyproject.toml --extra label -c constraints.txt --generate-hashes --no-annotate --no-header --quiet \
		-o output/requirements.txt

# known vulnerabilities of these packages, by api.osv.dev
audit: sbom
	$(BIN)/uv tool run pip-audit -s osv -r output/requirements.txt --disable-pip --require-hashes

# newest versions that go together, for each Python; review the change and run the tests before committing it
constraints: install
	for v in 3.10 3.11 3.12; do \
		$(BIN)/uv pip compile pyproject.toml --extra label --extra test --python-version $$v \
			--no-annotate --no-header -o $(VENV)/constraints-$$v.txt; \
	done
	@echo "Resolved into $(VENV)/constraints-*.txt; merge what changed into constraints.txt."

clean:
	rm -rf $(VENV) output bundles/*/cache bundles/*/output

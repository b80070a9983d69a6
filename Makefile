# make demo          set up and make a gallery of images from text
# make test          set up and run every check
# make lint          style and types only
# make docs          write docs/reference/cli.md anew
# make starter-image train and measure the shipped models again from the open data (hours on two cores)
# make clean         remove what the targets above made; runs and corpora stay

VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data/open
# The open sources with enough pictures of 128 pixels or more to learn from.
SOURCES := cxr_hannover ct_chest_lungpetctdx ct_totalsegmentator_tests us_nerve_usgra micro_blood_bccd \
	micro_rbc_chula12 histo_openslide_crops mri_pyradiomics_cases
CORPUS ?= corpus/starter
RUN ?= runs/starter-image
WORKERS ?= 2

# The first Python that is new enough and can make a virtual environment; `make PYTHON=... demo` chooses another.
FITS = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c '$(FITS)' >/dev/null 2>&1 && echo $$name && break; done)

GENERATE = HF_HUB_OFFLINE=1 $(BIN)/medisyn generate
GALLERY = $(GENERATE) --prompts src/medisyn/starter/gallery_prompts.csv --model starter-image --out demo/images

.PHONY: demo test lint docs starter-image clean

# Made anew each time: a folder of pictures belongs to one model, and the shipped one may have been replaced since.
demo: $(VENV)/installed
	rm -rf demo/images demo/interpolation demo/inpainting demo/chest-CT demo/clips
	$(GALLERY)
	$(GENERATE) interpolate --from "Frontal (PA) chest X-ray image" --frames 6 --seed 4 --out demo/interpolation \
		--to "Frontal (AP) chest X-ray image showing COVID-19"
	$(GENERATE) inpaint --image demo/images/blood-field.png --mask ellipse:66,64,26,24 -n 3 --out demo/inpainting \
		--prompt "Blood smear microscopy image of a white blood cell"
	$(GENERATE) --prompts src/medisyn/starter/gallery_reports.csv --model starter-ct --dicom --out demo/chest-CT
	$(GENERATE) --prompts src/medisyn/starter/gallery_clips.csv --model starter-video --format mkv --format gif \
		--out demo/clips
	$(GALLERY) --gallery demo/index.html --gallery-also demo/interpolation --gallery-also demo/inpainting \
		--gallery-also demo/chest-CT --gallery-also demo/clips
	@echo "Open the gallery: $(CURDIR)/demo/index.html"

test: $(VENV)/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/python docs/generate_cli.py

starter-image: $(VENV)/installed
	$(BIN)/medisyn curate $(SOURCES) --root $(DATA) --size 128 --out $(CORPUS)
	$(BIN)/medisyn train medical-encoder --corpus $(CORPUS) --out $(RUN)-encoder
	$(BIN)/medisyn train starter-image --corpus $(CORPUS) --out $(RUN)
	$(BIN)/python benchmarks/starter_image.py --corpus $(CORPUS) --model $(RUN)/model --out $(RUN)-figures

clean:
	rm -rf $(VENV) demo build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps are newer than what they were made from, so an edit to either file installs again. -c keeps every package,
# torch first, at the version the tests ran with.
$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with the venv module was found; set PYTHON=..."; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV); the first time this takes a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

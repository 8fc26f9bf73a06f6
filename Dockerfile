# One image for all roles: `docker run perseid:0.1.0 worker`, `embed`, `api`, `up`, …
# Versions and hashes are those of requirements.lock; development tools stay outside.

FROM python:3.11.13-bookworm AS build
RUN python -m pip install --no-cache-dir "uv==0.13.9"
WORKDIR /build
COPY pyproject.toml setup.py requirements.lock README.md LICENSE ./
# Dependencies first: they change rarely, and this layer is then reused.
RUN uv venv /venv \
 && uv pip install --python /venv/bin/python --no-cache "setuptools>=77" "pybind11>=3" \
 && uv pip install --python /venv/bin/python --no-cache --constraint requirements.lock --requirements pyproject.toml --extra remote
COPY context context
COPY deploy deploy
COPY encoder encoder
COPY index index
COPY streams streams
RUN uv pip install --python /venv/bin/python --no-cache --no-deps --no-build-isolation .

FROM python:3.11.13-slim-bookworm
# libgomp: torch and hnswlib
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin perseid \
 && install --directory --owner perseid --group perseid /state
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    HOME=/tmp \
    PERSEID_STATE=/state
USER 10001:10001
WORKDIR /state
VOLUME /state
EXPOSE 8000 8600
ENTRYPOINT ["perseid"]
CMD ["--help"]

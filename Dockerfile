# One image for the jobs and the feature server of the example; put your own feature repo in place of feature_repo/.

FROM python:3.13.7-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY featurestore featurestore
COPY registry registry
RUN python -m venv /opt/featurestore \
    && /opt/featurestore/bin/pip install --no-cache-dir --disable-pip-version-check '.[client,demo,postgres]'

FROM python:3.13.7-slim-bookworm
COPY --from=build /opt/featurestore /opt/featurestore
# The code is root's, so the server cannot change what it runs. Its own are the stores in data/ and the definitions
# that it last read, in .featurestore/: it starts from them when the registry is away.
COPY feature_repo /repo
RUN useradd --system --uid 10001 --no-create-home featurestore \
    && mkdir -p /repo/data /repo/.featurestore \
    && chown 10001 /repo/data /repo/.featurestore
ENV PATH=/opt/featurestore/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /repo
VOLUME /repo/data /repo/.featurestore
USER 10001
EXPOSE 6566
ENTRYPOINT ["fs"]
CMD ["serve", "--host", "0.0.0.0", "--port", "6566"]

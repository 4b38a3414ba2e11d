FROM python:3.12-slim
WORKDIR /src
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY resilience resilience
COPY tasks tasks
COPY workers workers
COPY migrations migrations
# The pins as constraints: what only the tests need is named there too, and stays out.
RUN sed -e '/--hash=/d' -e 's/ *\\$//' requirements.txt > /tmp/pins.txt \
    && pip install --no-cache-dir --constraint /tmp/pins.txt . \
    && cd / && rm -r /src /tmp/pins.txt \
    && useradd --uid 10001 --no-create-home penstock
WORKDIR /config
USER 10001
CMD ["penstock", "--help"]

# The operator's image. Not built in this project's own tests: they run the same package as a process, since the
# development cluster has no container engine.
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/tierwise \
    && /opt/tierwise/bin/pip install --no-cache-dir --require-hashes -r requirements/operator.txt \
    && /opt/tierwise/bin/pip install --no-cache-dir --no-deps .

FROM python:3.13-slim
COPY --from=build /opt/tierwise /opt/tierwise
ENV PATH=/opt/tierwise/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TZ=UTC
USER 65532:65532
ENTRYPOINT ["tierwise"]
CMD ["run"]

# What the README does, in a container: `docker build -t bigstep . && docker run --rm bigstep`.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /bigstep
COPY . .
# DVC needs a git repository; the copy need not have been one
RUN git config --global --add safe.directory /bigstep && (git rev-parse -q --git-dir || git init -q) && make install
CMD ["make", "repro"]

-- Next to that of the ledger, which the image makes: one database a tool, as a home of profile `cluster` has them.
CREATE DATABASE mlflow;
CREATE DATABASE prefect;

from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Int64

driver = Entity("driver", {"driver": Int64})
trips = PushSource("trips", ParquetSource("trips_file", "trips.parquet", "at"))
stats = FeatureView("stats", entities=[driver], source=trips, schema=[Field("count", Int64), Field("stars", Int64)])
model = FeatureService("model", [stats])
